//! One echo on one thread, by criterion: the tables with three forward maps, and the whole proxy.

mod load;

fn main() {}
