//! What Machines inherit of how their server was started.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};

use crate::stage::{AWAKE, SOON, machine_processes, on_host, private_app};

/// SIGPIPE, which programs in Rust ignore by themselves, and the two of the C library, which it has ignored in
/// whatever it starts.
const USUAL: &str = "0000000180001000";

#[test]
fn a_server_that_ignores_signals_does_not_hand_that_down() {
    on_host(|host| {
        host.stop_server()?;
        // As `nohup perch server &` in a script does it.
        let binary = std::env::var("PERCH_BIN").context("PERCH_BIN is not set")?;
        let binary = std::fs::canonicalize(binary)?;
        let (binary, data) = (binary.display(), host.data_dir());
        let script = format!(
            "trap '' HUP INT QUIT PIPE USR1; exec {binary} server --data-dir {}",
            data.display()
        );
        let mut server = host.command("bash", &["-c", &script]).stderr(Stdio::null()).spawn()?;
        wait_until("the server to answer", SOON, || {
            Ok(host.fly(&["apps", "list"])?.status.success().then_some(()))
        })?;
        private_app(host, "quotes", AWAKE)?;
        let ignored = ignored(host);
        server.kill()?;
        server.wait()?;
        let ignored = ignored?;
        ensure!(ignored == USUAL, "its program ignores {ignored}");
        Ok(())
    });
}

/// What the program of the app ignores, as the kernel writes it.
fn ignored(host: &Host) -> Result<String> {
    let machine = host.machines("quotes")?.pop().context("no Machine")?;
    let processes = machine_processes(host, &machine.id);
    let program = processes.iter().map(|process| process.pid).max().context("nothing runs")?;
    let status = std::fs::read_to_string(format!("/proc/{program}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(line.context("no SigIgn")?.trim().to_owned())
}
