"""SGLang's real schedulers and their real event loop on a machine without a GPU, for tests and a benchmark."""
