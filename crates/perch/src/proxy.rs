//! The proxy process: takes its sockets from standard input, gives up every privilege, and serves.

use std::process::ExitCode;

use anyhow::Context;
use perch_proxy::Handover;
use rustix::process::{Gid, Resource, Rlimit, Uid};

/// User and group `nobody` on every Linux that we know.
const NOBODY: u32 = 65_534;
/// Descriptors the proxy may hold: two for each connection it carries.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// Entry point of `perch proxy`. It is started by the server inside the data plane's network namespace.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn serve() -> anyhow::Result<()> {
    let handover = Handover::receive(rustix::stdio::stdin())
        .context("perch proxy is started by the server only")?;
    drop_privileges().context("could not give up privileges")?;
    let _last_words = crate::logging::begin_for_proxy().context("could not use standard error")?;
    // Others write to the same file. An error's span is there whatever is filtered.
    let _named = tracing::error_span!("proxy", pid = std::process::id()).entered();
    let options = perch_proxy::Options {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rewrite_endpoints: None,
    };
    perch_proxy::run(handover.listeners, handover.control, options)?;
    Ok(())
}

/// Becomes nobody for good. The process has one thread here, so the per-thread calls cover all of it.
fn drop_privileges() -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let nobody = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(nobody.1, nobody.1, nobody.1)?;
    rustix::thread::set_thread_res_uid(nobody.0, nobody.0, nobody.0)?;
    let none = rustix::thread::CapabilitySet::empty();
    let sets =
        rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Raises the limit as far as this host lets us; less only means fewer connections.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(DESCRIPTORS_MAX), maximum: Some(DESCRIPTORS_MAX) };
    if rustix::process::setrlimit(Resource::Nofile, wanted).is_ok() {
        return Ok(());
    }
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: now.maximum, maximum: now.maximum },
    )?;
    Ok(())
}
