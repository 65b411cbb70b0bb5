"""Which channels stay? Statistics of a layer, selection and reconstruction."""
