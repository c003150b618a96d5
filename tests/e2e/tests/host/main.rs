//! Host tests: the `perch` binary in hosts of its own, spoken to as its users speak to it.
//!
//! Each test has one host (see `perch-testkit`), uses the commands of the documents and compares
//! what they print and what really happens. They need root and are run by `cargo x test host`, which
//! sets `PERCH_BIN`, in a process for each. They may run at once: what no namespace divides (`Shared`) is
//! for one at a time.

mod access;
mod armed;
mod backup;
mod bad_image;
mod bad_input;
mod blueprint;
mod burst;
mod cgroup;
mod checks;
mod commands;
mod console;
mod contract;
mod cpu;
mod crash;
mod deploy;
mod dns;
mod down;
mod exec;
mod faults;
mod firewall;
mod freezing;
mod groups;
mod guides;
mod http2;
mod identity;
mod ids;
mod in_place;
mod inside;
mod leaks;
mod limits;
mod listen;
mod looking;
mod manual;
mod memory;
mod naps;
mod networks;
mod one_deploy;
mod persistence;
mod policy;
mod proxy;
mod prune;
mod quickstart;
mod real_http;
mod real_postgres;
mod real_redis;
mod real_streams;
mod reboot;
mod room;
mod routing;
mod scale;
mod schedule;
mod secrets;
mod signals;
mod silent_proxy;
mod slow_reader;
mod stage;
mod standby;
mod state;
mod still_disk;
mod suspend;
mod table;
mod tcp;
mod thaw;
mod token;
mod udp;
mod uninterruptible;
mod unruly;
mod upgrade;
mod volumes;
mod why;
mod wire;
