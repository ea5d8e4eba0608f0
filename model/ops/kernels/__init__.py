"""The fast form of each operation in Triton, for CUDA; what each must equal is the plain one in `model.ops` and the layers."""
