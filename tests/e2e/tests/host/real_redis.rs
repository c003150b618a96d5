//! Redis as Debian has it: clients that stay connected, and a child that writes a dump.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Network, holds_for, redis_image, wait_until};

use crate::stage::{SOON, on, on_host, one_machine_of};

const CACHE: &str = "\
[[services]]
  protocol = 'tcp'
  internal_port = 6379
  auto_stop_machines = 'suspend'
  auto_start_machines = true
  min_machines_running = 0
  [[services.ports]]
    port = 6379
";

#[test]
fn persistent_clients_sleep_and_a_dump_begun_before_is_finished_after() {
    on_host(|host| {
        let address = cache(host)?;
        let mut clients =
            host.inside(|| (0..20).map(|_| Redis::connect(address)).collect::<Result<Vec<_>>>())?;
        let (mut blocked, mut first) = (clients.remove(0), clients.remove(0));
        let fill = "for i = 1, 30000 do redis.call('set', i, string.rep('x', 100)) end return 1";
        ensure!(first.ask(&format!("EVAL \"{fill}\" 0"))? == ":1", "not filled");
        let id = first.ask("CLIENT ID")?;
        let machine = host.machines("cache")?.pop().context("no Machine")?.id;
        // Each key costs the child a pause, 5 s together, so that it is still writing when the Machine is suspended.
        ensure!(first.ask("CONFIG SET rdb-key-save-delay 100")? == "+OK", "not slowed down");
        ensure!(first.ask("BGSAVE")?.contains("started"), "no dump");
        host.fly(&["machine", "suspend", &machine, "-w", "30s"])?.ok()?;
        ensure!(first.ask("CLIENT ID")? == id, "another connection");
        ensure!(first.info("rdb_bgsave_in_progress")? == "1", "the dump ended before the sleep");
        wait_until("the dump", SOON, || {
            Ok((first.info("rdb_bgsave_in_progress")? == "0").then_some(()))
        })?;
        ensure!(first.info("rdb_last_bgsave_status")? == "ok", "the dump failed");

        // Waiting for an answer is no idleness.
        blocked.send("BLPOP list 3")?;
        host.wait_all("cache", "suspended", SOON)?;
        ensure!(blocked.line()? == "*-1", "asleep before the blocked client was answered");
        for client in &mut clients {
            ensure!(client.ask("PING")? == "+PONG", "a client is lost");
        }
        ensure!(first.ask("DBSIZE")? == ":30000", "keys are lost");
        Ok(())
    });
}

#[test]
fn a_client_that_pings_each_second_is_answered_and_keeps_nobody_awake() {
    let patient = || Host::start_with(Network::Open, "auto_stop_after = \"2s\"\n");
    on(patient, |host| {
        let address = cache(host)?;
        let mut client = host.inside(|| Redis::connect(address))?;
        // Known by the fifth; two seconds later it is put to sleep between any two.
        for _ in 0..10 {
            holds_for("the client is silent", Duration::from_secs(1), || Ok(true))?;
            ensure!(client.ask("PING")? == "+PONG", "not answered");
        }
        let machine = host.machines("cache")?.pop().context("no Machine")?;
        let (slept, named) = (machine.events("suspend"), machine.events("heartbeat"));
        ensure!(2 <= slept && named == 1, "slept {slept} times, named {named} times: {machine:?}");
        Ok(())
    });
}

fn cache(host: &Host) -> Result<SocketAddr> {
    let address = one_machine_of(host, "cache", &redis_image()?, CACHE)?;
    let ip: IpAddr = address.parse().context("its address")?;
    Ok(SocketAddr::new(ip, 6379))
}

/// A connection that nothing reopens.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut new = Self(BufReader::new(stream));
        ensure!(new.ask("PING")? == "+PONG", "it does not answer");
        Ok(new)
    }

    fn send(&mut self, command: &str) -> Result<()> {
        let text = format!("{command}\r\n");
        self.0.get_mut().write_all(text.as_bytes()).with_context(|| format!("sending {command}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).context("reading from Redis")? == 0 {
            bail!("Redis has closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.line()
    }

    fn info(&mut self, name: &str) -> Result<String> {
        let length: usize = self.ask("INFO persistence")?.trim_start_matches('$').parse()?;
        let mut text = vec![0; length + 2];
        self.0.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        Ok(value.with_context(|| format!("no {name}"))?.to_owned())
    }
}
