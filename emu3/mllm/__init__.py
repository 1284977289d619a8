"""The language model side: token layout, grid grammar, text tokenizer, model, sampling, Editor."""
