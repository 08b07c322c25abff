"""The icon corpus: openly licensed icons of many sets, named, split by hand and by concept."""
