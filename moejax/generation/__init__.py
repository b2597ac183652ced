"""Text from a language model: sampling, and the prefill and decode loops that ask for it."""
