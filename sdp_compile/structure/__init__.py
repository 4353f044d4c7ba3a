"""Structure analysis: which parameter dimensions are cut together, and which residual branches can be dropped."""
