"""Everything that touches the internals of transformers: loading, admission, surgery, conversion."""
