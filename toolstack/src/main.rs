//! The one executable of the project.

fn main() {}
