//! The platform dies; the apps do not.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, exchange, get, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::leaks::Resources;
use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, fly_toml, machine_processes, on_host, private_app,
    shell_image, wait_asleep,
};

/// Calls of the client, one after the other, each on a new connection.
struct Call {
    at: Instant,
    failure: Option<String>,
}

#[test]
fn running_apps_answer_while_the_server_is_dead() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let before = Before::of(host, "web")?;
        let calls = while_calling(host, &address, |host| {
            host.kill_server()?;
            host.start_server()
        })?;
        ensure!(failures(&calls, None).is_empty(), "lost: {:?}", failures(&calls, None));
        before.check(host, "web")
    });
}

#[test]
fn connections_made_without_a_proxy_are_answered_by_its_successor() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let before = Before::of(host, "web")?;
        let mut killed = None;
        let calls = while_calling(host, &address, |host| {
            let old = host.kill_proxy()?;
            killed = Some(Instant::now());
            wait_until("another proxy", SOON, || {
                let now = host.perch_processes("proxy").pop();
                Ok(now.filter(|now| now.pid != old.pid).map(drop))
            })
        })?;
        let lost = failures(&calls, killed);
        ensure!(lost.is_empty(), "lost after the kill: {lost:?}");
        before.check(host, "web")
    });
}

#[test]
fn a_new_server_and_proxy_take_over_what_runs() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let before = Before::of(host, "web")?;
        let mut killed = None;
        let calls = while_calling(host, &address, |host| {
            // The server first, so that it does not replace the proxy.
            host.kill_server()?;
            host.kill_proxy()?;
            killed = Some(Instant::now());
            host.start_server()
        })?;
        let lost = failures(&calls, killed);
        ensure!(lost.is_empty(), "lost after the kill: {lost:?}");
        before.check(host, "web")
    });
}

#[test]
fn damaged_files_of_machines_keep_neither_server_nor_down_from_working() {
    on_host(|host| {
        let (spec, shim) = (private_app(host, "spec", AWAKE)?, private_app(host, "shim", AWAKE)?);
        let machines = host.data_dir().join("machines");
        let damage = |host: &Host| -> Result<()> {
            for (app, file) in [("spec", "spec.json"), ("shim", "shim.json")] {
                for id in ids(host, app)? {
                    std::fs::write(machines.join(id).join(file), "")?;
                }
            }
            std::fs::create_dir(machines.join("stranger"))?;
            Ok(std::fs::write(machines.join("stranger/spec.json"), "")?)
        };
        damage(host)?;
        host.kill_server()?;
        host.start_server()?;
        ensure!(!machines.join("stranger").exists(), "what belongs to no Machine is still there");
        for address in [&spec, &shim] {
            check_answer(&host.get(address, 80, "/")?, "")?;
        }
        for id in [ids(host, "spec")?, ids(host, "shim")?].concat() {
            // The program and its PID 1.
            let live = machine_processes(host, &id).len();
            ensure!(live <= 2, "{live} processes of Machine {id}: it was started beside itself");
        }
        damage(host)?;
        host.stop_server()?;
        let data = host.data_dir().to_string_lossy().into_owned();
        host.perch(&["down", "--data-dir", &data, "--purge"])?.ok()?;
        ensure!(host.perch_processes("shim").is_empty(), "shims are left");
        ensure!(!host.data_dir().exists(), "the data are still there");
        Ok(())
    });
}

fn ids(host: &Host, app: &str) -> Result<Vec<String>> {
    Ok(host.machines(app)?.into_iter().map(|machine| machine.id).collect())
}

#[test]
fn with_a_service_manager_connections_are_accepted_while_neither_server_nor_proxy_lives() {
    on_host(|host| {
        host.stop_server()?;
        host.use_service_manager()?;
        host.start_server()?;
        let address = private_app(host, "web", AWAKE)?;
        host.kill_server()?;
        host.kill_proxy()?;
        let target = SocketAddr::new(address.parse::<IpAddr>()?, 80);
        // Nothing answers a SYN but a socket that somebody holds open.
        let mut stream = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)?))?;
        host.start_server()?;
        stream.set_read_timeout(Some(SOON))?;
        check_answer(&exchange(&mut stream, "/")?, "")
    });
}

#[test]
fn listeners_of_a_plane_that_is_gone_are_not_used() {
    on_host(|host| {
        host.stop_server()?;
        host.use_service_manager()?;
        host.start_server()?;
        host.stop_server()?;
        let data = host.data_dir().to_string_lossy().into_owned();
        host.perch(&["down", "--data-dir", &data])?.ok()?;
        host.start_server()?;
        let address = private_app(host, "web", AWAKE)?;
        check_answer(&host.get(&address, 80, "/")?, "")
    });
}

#[test]
fn a_sleeping_app_answers_when_the_server_is_back() {
    on_host(|host| {
        let address = private_app(host, "quotes", SNIPPET)?;
        wait_asleep(host, "quotes")?;
        host.kill_server()?;
        let target = SocketAddr::new(address.parse::<IpAddr>()?, 80);
        let enter = host.entrance()?;
        let sent = AtomicBool::new(false);
        let answer = std::thread::scope(|scope| {
            let call = scope.spawn(|| {
                enter.enter()?;
                sent.store(true, Ordering::SeqCst);
                get(target, "/", Duration::from_secs(65))
            });
            wait_until("the call to be under way", SOON, || {
                Ok(sent.load(Ordering::SeqCst).then_some(()))
            })?;
            host.start_server()?;
            call.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        check_answer(&answer, "")
    });
}

#[test]
fn exit_codes_and_logs_are_complete_after_a_crash() {
    on_host(|host| {
        let script = "trap 'echo bye; exit 7' USR1; i=0; \
            while :; do i=$((i+1)); echo line $i; busybox sleep 0.1; done";
        let image = shell_image(host, "worker", script)?;
        let restart = "[[restart]]\n  policy = 'never'\n";
        let dir = host.app_dir("worker", &fly_toml("worker", &image, restart))?;
        host.fly(&["apps", "create", "worker"])?.ok()?;
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        let id = host.machines("worker")?[0].id.clone();
        host.kill_server()?;
        end_by_signal(host, &id)?;
        host.start_server()?;
        host.wait_all("worker", "stopped", SOON)?;
        host.fly(&["machine", "status", &id, "-a", "worker"])?.says(&["exit_code=7"])?;
        check_log(&host.fly(&["logs", "--no-tail", "-a", "worker"])?.ok()?)
    });
}

/// Sends SIGUSR1 to the app's shell and waits until nothing of the Machine is left.
fn end_by_signal(host: &Host, id: &str) -> Result<()> {
    let processes = machine_processes(host, id);
    let is_shell = |arg: &String| arg.ends_with("/sh");
    let shell = processes.iter().find(|p| p.args.first().is_some_and(is_shell));
    let pid = shell.and_then(|p| Pid::from_raw(p.pid)).context("the app's shell does not run")?;
    kill_process(pid, Signal::USR1)?;
    wait_until("the Machine to be gone", SOON, || {
        Ok(machine_processes(host, id).is_empty().then_some(()))
    })
}

/// Each line is there once and in order, up to the last.
fn check_log(log: &str) -> Result<()> {
    ensure!(log.contains("bye"), "the last line is missing:\n{log}");
    let number = |line: &str| line.rsplit_once("line ").and_then(|(_, n)| n.trim().parse().ok());
    let numbers: Vec<u32> = log.lines().filter_map(number).collect();
    let first = *numbers.first().context("no line in the log")?;
    let expected: Vec<u32> = (first..).take(numbers.len()).collect();
    ensure!(numbers == expected, "lines are missing or doubled: {numbers:?}");
    Ok(())
}

/// Calls an address again and again while `happens` happens, and 2 s longer.
fn while_calling(
    host: &mut Host,
    address: &str,
    happens: impl FnOnce(&mut Host) -> Result<()>,
) -> Result<Vec<Call>> {
    let target = SocketAddr::new(address.parse::<IpAddr>()?, 80);
    let enter = host.entrance()?;
    let done = AtomicBool::new(false);
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            enter.enter()?;
            let mut calls = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let at = Instant::now();
                let failure = match get(target, "/", SOON) {
                    Ok(answer) if answer.status == 200 => None,
                    Ok(answer) => Some(format!("{answer:?}")),
                    Err(error) => Some(format!("{error:#}")),
                };
                calls.push(Call { at, failure });
                made.store(calls.len(), Ordering::SeqCst);
            }
            anyhow::Ok(calls)
        });
        let result = happens(host)
            .and_then(|()| check_answer(&host.get(address, 80, "/")?, ""))
            // What happened may be over in no time; the calls that follow count as well.
            .and_then(|()| {
                let seen = made.load(Ordering::SeqCst);
                wait_until("ten more calls", SOON, || {
                    Ok((seen + 10 < made.load(Ordering::SeqCst)).then_some(()))
                })
            });
        done.store(true, Ordering::SeqCst);
        let calls = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result?;
        Ok(calls)
    })
}

/// What failed of the calls that were begun after `since`, or of all.
fn failures(calls: &[Call], since: Option<Instant>) -> Vec<&String> {
    let counts = |call: &&Call| since.is_none_or(|since| since < call.at);
    calls.iter().filter(counts).filter_map(|call| call.failure.as_ref()).collect()
}

/// What a crash must leave as it was.
struct Before {
    starts: usize,
    resources: Resources,
}

impl Before {
    fn of(host: &Host, app: &str) -> Result<Self> {
        Ok(Self { starts: starts(host, app)?, resources: Resources::of(host)? })
    }

    /// As many starts (adoption is none) and shims, no zombies, and nothing that leaked.
    fn check(&self, host: &Host, app: &str) -> Result<()> {
        let now = starts(host, app)?;
        ensure!(now == self.starts, "{} starts became {now}", self.starts);
        let states = host.states(app)?;
        ensure!(states.iter().all(|state| state == "started"), "{states:?}");
        let shims = host.perch_processes("shim").len();
        ensure!(shims == states.len(), "{shims} shims for {} Machines", states.len());
        wait_until("no zombies", SOON, || {
            let left = host.processes().into_iter().filter(|process| process.state == 'Z').count();
            Ok((left == 0).then_some(()))
        })?;
        Resources::check_not_grown(host, &self.resources)
    }
}

fn starts(host: &Host, app: &str) -> Result<usize> {
    Ok(host.machines(app)?.iter().map(|machine| machine.events("start")).sum())
}
