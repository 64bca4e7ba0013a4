"""The paper's offline protocol on CIFAR-10 and on variants of it that look like streams. See `__main__`."""
