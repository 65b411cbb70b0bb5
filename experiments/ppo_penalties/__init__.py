"""Is a CIM penalty better than a KL penalty or a clip?"""
