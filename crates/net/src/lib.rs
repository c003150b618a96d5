//! The data plane: one network namespace per data directory, and everything in it.
//!
//! ```text
//!  host namespace            plane namespace (pinned)               Machine namespace
//!  perch0 ───────────── host0   sets, TPROXY, DNS address   <name> ─────────── eth0
//!  route per network /48        AnyIP routes, listeners            fdaa::/16, IPv4 default
//! ```
//!
//! [`Plane::ensure`] makes or adopts the namespace. Networks, published addresses and Machines are
//! then added and removed one by one, each by one netlink transaction. The kernel keeps all of it
//! when the process ends; the next `ensure` takes it over without disturbing traffic.
//!
//! The namespace of the thread that calls [`Plane::ensure`] is "the host". Everything that belongs
//! to another namespace is made on a thread of its own, so no other thread changes namespace.
//!
//! This crate does not know apps, chooses no address, and runs no program.

mod access;
mod address;
mod doctor;
mod error;
mod firewall;
mod listeners;
mod namespace;
mod netlink;
mod nft;
mod plane;
mod route;
mod sys;

pub use access::HostAccess;
pub use address::{Prefix, Prefix48};
pub use doctor::{Check, doctor};
pub use error::NetError;
pub use listeners::{Listeners, Listening};
pub use namespace::{new_namespace, run_in};
pub use plane::{Attach, CallLimits, CalledOften, Plane, PlaneConfig, Ports, Visible};
pub use sys::own_descriptor;
