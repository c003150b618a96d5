//! The whole proxy in one process: real sockets on loopback, a server played by the test, Machines
//! played by tasks.

mod bulk;
mod checks;
mod chunks;
mod compress;
mod control;
mod crowd;
mod damp;
mod dns;
mod dying;
mod end;
mod fuzz;
mod http;
mod http2;
mod identity;
mod leaving;
mod live;
mod lost;
mod nginx;
mod notes;
mod onward;
mod panic;
mod parser;
mod policy;
mod pooling;
mod raw;
mod replay;
mod resting;
mod routing;
mod sleeper;
mod treatment;
mod udp;
mod untaken;
mod upgrade;
mod websocket;
mod world;
