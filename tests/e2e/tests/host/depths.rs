//! Clients against both kinds of sleepers, and ones that one talks with while their Machine sleeps.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use tempfile::NamedTempFile;

use crate::stage::{SOON, on_host};

/// What `auto_stop_machines` says, and how a Machine that sleeps so is called.
const DEPTHS: [(&str, &str); 2] = [("stop", "stopped"), ("suspend", "suspended")];

/// Calls of each client at each depth.
fn rounds() -> usize {
    if std::env::var_os("PERCH_LONG").is_some() { 5 } else { 1 }
}

/// Makes an app that sleeps as the third argument says; returns its address when it can answer.
pub(crate) type Deploy<'a> = &'a dyn Fn(&Host, &str, &str) -> Result<String>;

/// Runs a client (told the app and its address) against an app whose Machine is stopped and one whose Machine is suspended. Each time the Machine sleeps before,
/// and the ledger says afterwards that a caller from this host has woken it from there.
pub(crate) fn each_depth(
    name: &str,
    deploy: Deploy<'_>,
    client: impl Fn(&Host, &str, &str) -> Result<()>,
) {
    on_host(|host| {
        for (autostop, asleep) in DEPTHS {
            let app = format!("{name}-{autostop}");
            let address = deploy(host, &app, autostop)?;
            for round in 0..rounds() {
                host.wait_all(&app, asleep, SOON)?;
                let before = wakes(host, &app, asleep)?;
                let called = client(host, &app, &address);
                called.with_context(|| format!("{app}, round {round}; {}", logs(host, &app)))?;
                wait_until("the client's wake in the ledger", SOON, || {
                    Ok((before < wakes(host, &app, asleep)?).then_some(()))
                })?;
            }
        }
        Ok(())
    });
}

/// How often a caller from this host has woken the app's Machines from this depth.
pub(crate) fn wakes(host: &Host, app: &str, asleep: &str) -> Result<usize> {
    let page = host.api(&format!("/perch/v1/why/events?app={app}&limit=1000"))?;
    let events = page["events"].as_array().context("no events")?;
    let is_meant = |event: &&serde_json::Value| {
        let from =
            event["from"].as_str().map(|from| if from == "armed" { "stopped" } else { from });
        event["kind"] == "wake" && event["trigger"]["kind"] == "host" && from == Some(asleep)
    };
    Ok(events.iter().filter(is_meant).count())
}

/// What an app wrote, for error texts.
pub(crate) fn logs(host: &Host, app: &str) -> String {
    let said = host.fly(&["logs", "--no-tail", "-a", app]);
    said.map_or_else(|error| format!("{error:#}"), |output| output.to_string())
}

/// A client that reads commands line by line, and keeps its connection.
pub(crate) struct Talk {
    child: Child,
    tells: ChildStdin,
    lines: Receiver<String>,
    complaints: NamedTempFile,
}

impl Talk {
    pub(crate) fn start(host: &Host, program: &str, args: &[&str]) -> Result<Self> {
        let complaints = NamedTempFile::new_in(host.dir())?;
        // Where nobody looks on, programs keep what they have to say.
        let mut command = host.command("stdbuf", &[&["-oL", program], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints.reopen()?);
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let tells = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let (said, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, tells, lines, complaints })
    }

    /// Tells it one command; returns the first line of what it says to that.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.tells, "{command}").with_context(|| format!("telling it `{command}`"))?;
        let said = self.lines.recv_timeout(SOON);
        said.with_context(|| format!("nothing on `{command}`; {}", self.complaints()))
    }

    /// Lets it end, which must be without a complaint.
    pub(crate) fn end(self) -> Result<()> {
        let Self { mut child, tells, complaints, .. } = self;
        drop(tells);
        let status = wait_until("the end of a client", SOON, || Ok(child.try_wait()?))?;
        let complaints = fs::read_to_string(complaints.path())?;
        ensure!(status.success() && complaints.is_empty(), "{status}: {complaints}");
        Ok(())
    }

    fn complaints(&self) -> String {
        fs::read_to_string(self.complaints.path()).unwrap_or_default()
    }
}

/// Asks something, and where an app may sleep under an open connection the same again after its sleep; the answer must be the same,
/// by whom and on which connection it is given included.
pub(crate) fn check_talk(host: &Host, app: &str, mut talk: Talk, question: &str) -> Result<()> {
    let first = talk.ask(question)?;
    for _ in 0..rounds() {
        if app.ends_with("-stop") {
            break;
        }
        host.wait_all(app, "suspended", SOON)?;
        let before = wakes(host, app, "suspended")?;
        let again = talk.ask(question)?;
        ensure!(again == first, "{again}, and before {first}");
        wait_until("the wake in the ledger", SOON, || {
            Ok((before < wakes(host, app, "suspended")?).then_some(()))
        })?;
    }
    talk.end()
}
