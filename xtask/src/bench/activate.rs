//! The same program behind `systemd-socket-activate`: no isolation, and a socket that listens before it starts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::rootfs::{self, Program};
use super::wake::{Killed, first_byte, local};

/// To the first byte of an answer to who connects first: it waits for that, and becomes the program.
pub(super) fn round(program: &Program) -> Result<Duration> {
    let address = local(program);
    let mut command = Command::new("systemd-socket-activate");
    // As inetd did it: the socket is standard input, which needs no unsafe code to take.
    command.args(["--inetd", "-E", &format!("{}=1", rootfs::INHERIT), "-l", &address.to_string()]);
    command.args(&program.bare).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Killed(command.spawn().context("starting systemd-socket-activate")?);
    await_listening(&mut child.0)?;
    first_byte(address, Instant::now())
}

fn await_listening(child: &mut Child) -> Result<()> {
    let said = child.stderr.as_mut().context("no standard error")?;
    let mut all = String::new();
    let mut lines = BufReader::new(said);
    while lines.read_line(&mut all)? != 0 {
        if all.contains("Listening on") {
            return Ok(());
        }
    }
    bail!("systemd-socket-activate does not listen: {all}")
}
