//! A server that dies while a Machine is being drained: who is inside is answered all the same.

use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};

use crate::stage::{AWAKE, SOON, hello_image, machine_processes, on_host, one_machine_of};
use crate::why_now::{ask, until};

/// In flight until the rest of its body comes.
const HALF: &str =
    "POST /headers HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nConnection: close\r\n\r\n01234";

#[test]
fn a_request_is_answered_whole_though_the_server_dies_in_the_drain_of_a_stop() {
    on_host(|host| check(host, &["machine", "stop"], &["stopping"]));
}

#[test]
fn a_request_is_answered_whole_though_the_server_dies_in_the_drain_of_a_removal() {
    // Nobody is told of what is being removed.
    on_host(|host| check(host, &["machine", "destroy", "--force"], &[]));
}

fn check(host: &mut Host, verb: &[&str], between: &[&str]) -> Result<()> {
    let address = one_machine_of(host, "web", &hello_image(host)?, AWAKE)?;
    let id = host.machines("web")?[0].id.clone();
    let mut request = ask(host, &address, HALF)?;
    request.set_read_timeout(Some(SOON))?;
    until(host, "web", "the request", |why| why["machines"][0]["load"] == 1)?;
    let mut command = host.fly_command(host.dir(), &[verb, &[&id, "-a", "web"]].concat());
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until(
        "the begin of its end",
        SOON,
        || Ok((host.states("web")? == between).then_some(())),
    )?;
    host.kill_server()?;
    // It was answered, or never will be.
    command.kill()?;
    command.wait()?;
    host.start_server()?;
    ensure!(host.states("web")? == between, "its end is called off");
    request.write_all(b"56789").context("the rest of the request")?;
    let mut answer = String::new();
    request.read_to_string(&mut answer).context("the answer")?;
    ensure!(answer.contains(" got POST /headers with 10 bytes\n"), "not whole: {answer:?}");
    wait_until("its end", SOON, || Ok(machine_processes(host, &id).is_empty().then_some(())))
}
