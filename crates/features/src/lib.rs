//! Nothing. Its manifest names features of others' crates, so that cargo resolves the whole
//! workspace, all but libtorch, and the programs alone to the same ones, and compiles each crate
//! once. Nobody depends on it: `--workspace` selects it.
