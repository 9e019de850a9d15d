//! operator.

fn main() {}
