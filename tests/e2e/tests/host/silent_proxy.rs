//! A proxy that lives and says nothing: whatever becomes of it, there are never two.

use anyhow::{Context, Result, ensure};
use perch_testkit::Host;
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{AWAKE, check_answer, on_host, private_app};

#[test]
fn a_proxy_that_does_not_answer_ends_before_it_gets_a_successor() {
    on_host(|host| {
        // It keeps the listeners, so that a second proxy could serve beside the first.
        host.stop_server()?;
        host.use_service_manager()?;
        host.start_server()?;
        let address = private_app(host, "web", AWAKE)?;
        host.kill_server()?;
        let silent = only_proxy(host)?;
        kill_process(Pid::from_raw(silent).context("0 is no process")?, Signal::STOP)?;
        host.start_server()?;
        // Two would share the callers, and what the first one thaws would never sleep again.
        ensure!(only_proxy(host)? != silent, "it was waited for");
        check_answer(&host.get(&address, 80, "/")?, "Hello")
    });
}

fn only_proxy(host: &Host) -> Result<i32> {
    let all = host.perch_processes("proxy");
    ensure!(all.len() == 1, "not one proxy: {all:?}");
    Ok(all[0].pid)
}
