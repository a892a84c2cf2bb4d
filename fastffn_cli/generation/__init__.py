"""From a prompt to text: picking tokens, decoding with a cache, streaming."""
