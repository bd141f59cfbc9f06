"""Models: one a file, and any `torch.nn.Module` of the user's own by `package.module:function`."""
