"""Training a network: functions of tensors and plain numbers, the same alone and under DDP."""
