"""The reranker in the form that other libraries ask for, in this process.

A module per library, each with an extra of the same name; the library is imported with the module:

=========================  =========================================================
``cross_encoder``          ``CrossEncoder`` of sentence-transformers; needs no package
``langchain``              ``RetrvCompressor``, a ``BaseDocumentCompressor``
``llama_index``            ``RetrvPostprocessor``, a ``BaseNodePostprocessor``
``haystack``               ``RetrvRanker``, a component
``rerankers``              ``RetrvRanker``, a ``BaseRanker``
=========================  =========================================================
"""
