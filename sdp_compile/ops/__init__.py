"""Functions that passes insert into graphs, besides ATen operators."""
