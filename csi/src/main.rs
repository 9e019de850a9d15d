//! csi.

fn main() {}
