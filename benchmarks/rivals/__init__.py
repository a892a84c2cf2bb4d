"""The same GPT in several hands, each in a process of its own: ours, PyTorch's, stock Paddle's."""
