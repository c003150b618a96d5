//! Decisions of Perch, without any I/O.
//!
//! Everything here is a pure machine or a pure function: events and `now` go in, effects come out.
//! There is no clock, socket, file, task or randomness in this crate, so that `tests/sim` can run
//! the very code that decides about real Machines, with any order of events, from a seed.
//!
//! | Module | Decides |
//! |---|---|
//! | [`admission`] | whether one more request may enter a Machine (lock-free, warm path) |
//! | [`aim`] | where a request says that it wants to go |
//! | [`base64`] | nothing: how bytes are written as text |
//! | [`balancer`] | which Machine gets a request, when Machines wake and when they sleep |
//! | [`policy`] | who may call a service, and who may wake it |
//! | [`replay`] | what a program means that wants a request replayed |
//! | [`lifecycle`] | what one Machine does next: start, stop, restart, update, destroy |
//! | [`checks`] | when a health check is tried, and what its results mean |
//! | [`rotation`] | which of two keys signs, and which are shown |
//! | [`schedule`] | when a Machine with a schedule is started |
//! | [`arming`] | which stopped Machines have their next start made ready |
//! | [`coding`] | whether an answer goes out compressed |
//! | [`cpu`] | which Machines yield the CPUs to others |
//! | [`datagrams`] | what is kept of a UDP session while its Machine wakes |
//! | [`deploy`] | the steps of a deploy |
//! | [`ledger`] | what a caller's wait consisted of, and which records of it are kept |
//! | [`address`] | which addresses networks, apps and Machines get |
//! | [`drains`] | which proxies have not said yet that a Machine is empty |
//! | [`dns`] | what a DNS question is answered with |

pub mod address;
pub mod admission;
pub mod aim;
pub mod arming;
pub mod balancer;
pub mod base64;
pub mod checks;
pub mod coding;
pub mod cpu;
pub mod datagrams;
pub mod deploy;
pub mod dns;
pub mod drains;
#[doc(hidden)]
pub mod fault;
pub mod heartbeat;
pub mod ids;
pub mod ledger;
pub mod lifecycle;
pub mod memory;
#[doc(hidden)]
pub mod mutant;
pub mod policy;
pub mod quiet;
pub mod replay;
pub mod rotation;
pub mod schedule;
pub mod service;
pub mod time;
pub mod websocket;
