//! What makes the machine fault-tolerant: inputs are recorded ([`record`]) or replayed ([`replay`]), enter by one
//! function ([`inject`]), outputs are ordered with the position that caused them ([`output`]), and a lost peer ends in
//! [`takeover`].

pub mod inject;
