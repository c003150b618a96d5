//! WebSockets and streams of events behind the `http` handler, over sleeps.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, holds_for, node_image, python_image, wait_until};

use crate::real_http::{Caller, web};
use crate::stage::{SOON, on, on_host, one_machine_of};

const EACH: usize = 20;
/// The first message to a frozen Machine; a thaw takes a millisecond, on a host that is busy with builds more.
const WAKE_MAX: Duration = Duration::from_secs(10);

#[test]
fn websockets_and_streams_of_events_sleep_with_their_machine_and_go_on() {
    on_host(|host| {
        let address = web(host, "live", &node_image()?, "")?;
        let mut sockets = many(host, || socket(address))?;
        let mut streams = many(host, || stream(address))?;
        let before = echoes(&mut sockets, "one")?;
        host.wait_all("live", "suspended", SOON)?;

        // Who leaves wakes nobody.
        drop((sockets.pop(), streams.pop()));
        holds_for("asleep", Duration::from_secs(1), || Ok(host.states("live")? == ["suspended"]))?;
        let resumes = resumes(host, "live")?;
        let since = Instant::now();
        sockets[0].echo("first")?;
        ensure!(since.elapsed() < WAKE_MAX, "it took {:?}", since.elapsed());
        let after = echoes(&mut sockets, "one")?;
        ensure!(after == before[..EACH - 1], "another process, or another message");
        wait_resumes(host, "live", resumes + 1)?;

        // What the program says of its own accord comes when another request has woken it.
        host.wait_all("live", "suspended", SOON)?;
        host.inside(|| Caller::connect(address)?.get("/publish?news"))?;
        for stream in &mut streams {
            ensure!(stream.chunk()?.contains("data: news"), "another event");
        }
        for socket in &mut sockets {
            ensure!(socket.text()? == "news", "another message");
        }
        Ok(())
    });
}

#[test]
fn a_message_that_waits_for_its_answer_keeps_the_machine_awake() {
    on_host(|host| {
        let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 app:asgi'\n";
        let address = web(host, "asked", &python_image()?, run)?;
        let mut socket = host.inside(|| socket(address))?;
        // Frozen, it would never come.
        let slow = socket.echo("slow")?;
        host.wait_all("asked", "suspended", SOON)?;
        let (pid, _) = slow.split_once(' ').context("no process")?;
        ensure!(socket.echo("two")? == format!("{pid} two"), "another process");
        Ok(())
    });
}

#[test]
fn a_websocket_that_is_pinged_all_the_time_sleeps_and_its_pings_wake_nobody() {
    on_host(|host| {
        let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 app:asgi'\n";
        let address = web(host, "pinged", &python_image()?, run)?;
        let mut socket = host.inside(|| socket(address))?;
        let before = socket.echo("one")?;
        let asleep = || Ok(host.states("pinged")? == ["suspended"]);
        wait_until("asleep under pings", SOON, || {
            socket.ping()?;
            Ok(asleep()?.then_some(()))
        })?;
        let resumes = resumes(host, "pinged")?;
        holds_for("pings wake nobody", Duration::from_secs(1), || {
            socket.ping()?;
            asleep()
        })?;
        ensure!(socket.echo("one")? == before, "another process");
        // By the message, and no ping before it.
        wait_resumes(host, "pinged", resumes + 1)
    });
}

fn resumes(host: &Host, app: &str) -> Result<usize> {
    Ok(host.machines(app)?.pop().context("no Machine")?.events("resume"))
}

/// Waits until it was woken so often, and no oftener.
fn wait_resumes(host: &Host, app: &str, count: usize) -> Result<()> {
    wait_until("its resume", SOON, || Ok((count <= resumes(host, app)?).then_some(())))?;
    ensure!(resumes(host, app)? == count, "woken more than once");
    Ok(())
}

/// Pings five times a second, and tells what comes.
const CLIENT: &str = "\
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], ping_interval=0.2, ping_timeout=5, open_timeout=30) as socket:
        await socket.send('one')
        print((await socket.recv()).split()[1], flush=True)
        try:
            print('said', await socket.recv(), flush=True)
        except websockets.ConnectionClosed:
            print('closed', socket.close_code, flush=True)
asyncio.run(main())
";

#[test]
fn a_websocket_client_is_told_that_its_machine_goes_awake_and_asleep() {
    on_host(|host| {
        let script = host.dir().join("client.py");
        std::fs::write(&script, CLIENT)?;
        let script = script.to_string_lossy();
        for (autostop, asleep, waits_for) in
            [("stop", "stopped", "started"), ("suspend", "suspended", "suspended")]
        {
            let app = format!("told-{autostop}");
            let sections = format!(
                "[http_service]\n  internal_port = 8080\n  force_https = false\n  \
                 auto_stop_machines = '{autostop}'\n  auto_start_machines = true\n  \
                 min_machines_running = 0\n  processes = ['app']\n[processes]\n  \
                 app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 app:asgi'\n"
            );
            let address = one_machine_of(host, &app, &python_image()?, &sections)?;
            host.wait_all(&app, asleep, SOON)?;
            let url = format!("ws://[{address}]/ws");
            let mut client = host.command("/usr/bin/python3", &[&script, &url]);
            let mut client = client.stdout(Stdio::piped()).spawn()?;
            let mut lines = BufReader::new(client.stdout.take().context("no output")?).lines();
            let first = lines.next().context("it said nothing")??;
            ensure!(first == "one", "it was told {first}");
            host.wait_all(&app, waits_for, SOON)?;
            let machine = host.machines(&app)?.pop().context("no Machine")?;
            host.fly(&["machine", "stop", &machine.id, "-a", &app])?.ok()?;
            let last = lines.next().context("it said no more")??;
            ensure!(client.wait()?.success() && last == "closed 1001", "{autostop}: {last}");
        }
        Ok(())
    });
}

/// The server pings twice as often as it would have to to stay awake, and each is answered.
#[test]
fn a_websocket_that_its_server_pings_all_the_time_lets_it_sleep() {
    const PINGS_MAX: usize = 25;
    on(
        || Host::start_with(Network::Open, "auto_stop_after = \"2s\"\n"),
        |host| {
            let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 \
                   --ws-ping-interval 1 app:asgi'\n";
            let address = web(host, "pings", &python_image()?, run)?;
            let mut socket = host.inside(|| socket(address))?;
            let answered =
                thread::spawn(move || (0..PINGS_MAX).take_while(|_| socket.pong().is_ok()).count());
            host.wait_all("pings", "suspended", SOON)?;
            let machine = host.machines("pings")?.pop().context("no Machine")?;
            // Its connections end with it, at once.
            host.fly(&["machine", "destroy", "--force", &machine.id, "-a", "pings"])?.ok()?;
            let answered = answered.join().ok().context("a panic")?;
            ensure!((1..PINGS_MAX).contains(&answered), "{answered} pings were answered");
            Ok(())
        },
    );
}

fn many(host: &Host, connect: impl Fn() -> Result<Caller> + Sync) -> Result<Vec<Caller>> {
    host.inside(|| (0..EACH).map(|_| connect()).collect())
}

fn socket(address: SocketAddr) -> Result<Caller> {
    let mut caller = Caller::connect(address)?;
    caller.upgrade()?;
    Ok(caller)
}

fn stream(address: SocketAddr) -> Result<Caller> {
    let mut caller = Caller::connect(address)?;
    caller.ask("/events")?;
    ensure!(caller.head("200")?.is_none(), "a stream with a length");
    ensure!(caller.chunk()?.contains("hello"), "no first event");
    Ok(caller)
}

fn echoes(sockets: &mut [Caller], text: &str) -> Result<Vec<String>> {
    sockets.iter_mut().map(|socket| socket.echo(text)).collect()
}
