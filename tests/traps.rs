//! Every known way to load a model wrong is detected and named.
