"""Making a network smaller: distillation, channel pruning, quantization. Tensors and plain numbers in and out."""
