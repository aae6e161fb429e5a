"""The benchmark of the SGLang adapter: SGLang's real scheduler method on CPU, as it is and with lazycast."""
