//! Armed Machines: stopped to everybody, and their next start is done but for the program.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, Network, Process, wait_until};

use crate::limits::only;
use crate::stage::{
    SNIPPET, SOON, check_answer, hello_image, machine_processes, on, one_machine_of, shell_image,
    wait_asleep,
};
use crate::why_now::ask;

const QUICK: &str = "auto_stop_after = \"300ms\"\n";

/// What shim and init have for themselves; twice what was measured.
const PRIVATE_KB_MAX: u64 = 450;

/// Answers with a variable.
const SHOWS: &str = "mkdir -p /www; echo \"key=$KEY\" > /www/index.html; \
    exec busybox httpd -f -p 0.0.0.0:8081 -h /www";

fn on_quick_host(test: impl FnOnce(&mut Host) -> Result<()>) {
    on(|| Host::start_with(Network::Open, QUICK), test);
}

/// Deploys an app of one Machine and returns its Flycast address.
fn deploy(host: &Host, app: &str, image: &str) -> Result<String> {
    one_machine_of(host, app, image, SNIPPET)
}

fn hello(host: &Host, app: &str) -> Result<String> {
    deploy(host, app, &hello_image(host)?)
}

/// The shims that were started to wait. Those that were told to go on are among them.
fn waiting(host: &Host) -> Vec<Process> {
    let mut shims = host.perch_processes("shim");
    shims.retain(|shim| shim.args.iter().any(|arg| arg == "--armed"));
    shims
}

/// Waits until the app's Machine is armed; the process that waits in it.
pub(crate) fn await_armed(host: &Host, app: &str) -> Result<Process> {
    wait_asleep(host, app)?;
    let id = only(host, app)?.id;
    let init = wait_until("the Machine to be armed", SOON, || {
        let mut inside = machine_processes(host, &id);
        let init = inside.pop().filter(|_| inside.is_empty());
        Ok(init.filter(|init| init.args.iter().any(|arg| arg.ends_with("init"))))
    })?;
    let machine = only(host, app)?;
    ensure!(machine.state == "stopped", "to its user it is {}", machine.state);
    Ok(init)
}

/// Whether the newest start took what was armed.
fn began_armed(machine: &Machine) -> Result<bool> {
    let events = machine.value["events"].as_array().context("no events")?;
    let start = events.iter().find(|event| event["type"] == "start").context("no start")?;
    Ok(start["request"]["armed"] == true)
}

/// Uses the Machine, so that it stays awake, until this is dropped: a reset is seen at once.
fn in_use(host: &Host, address: &str) -> Result<TcpStream> {
    let stream = ask(host, address, "GET /sleep?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")?;
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(stream)
}

fn lives(process: &Process) -> bool {
    std::path::Path::new(&format!("/proc/{}", process.pid)).exists()
}

/// What one costs beside what the kernel keeps for it, and what all share.
fn check_is_small(init: &Process, shim: &Process) -> Result<()> {
    let private = |process: &Process| -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
        number.context("the kernel does not tell")
    };
    let (init, shim) = (private(init)?, private(shim)?);
    ensure!(init + shim <= PRIVATE_KB_MAX, "init has {init} kB, its shim {shim} kB");
    Ok(())
}

fn check_gone(process: &Process) -> Result<()> {
    let what = format!("process {} to be gone", process.pid);
    wait_until(&what, SOON, || Ok((!lives(process)).then_some(())))
}

#[test]
fn the_next_request_starts_what_was_armed() {
    on_quick_host(|host| {
        let address = hello(host, "web")?;
        ensure!(!began_armed(&only(host, "web")?)?, "the first start cannot have been armed");
        for _ in 0..3 {
            let init = await_armed(host, "web")?;
            let events = only(host, "web")?;
            let _used = in_use(host, &address)?;
            check_answer(&host.get(&address, 80, "/")?, "Hello")?;
            let machine = only(host, "web")?;
            ensure!(began_armed(&machine)?, "not by what was armed: {:?}", machine.value["events"]);
            let inside = machine_processes(host, &machine.id);
            ensure!(inside.len() == 2, "not PID 1 and the program: {inside:?}");
            ensure!(inside.iter().any(|it| it.pid == init.pid), "another PID 1 than what waited");
            ensure!(machine.events("start") == events.events("start") + 1, "not one start");
        }
        Ok(())
    });
}

#[test]
fn whatever_changes_a_machine_disarms_it() {
    on_quick_host(|host| {
        let address = deploy(host, "web", &shell_image(host, "shows", SHOWS)?)?;
        check_answer(&host.get(&address, 80, "/")?, "key=\n")?;
        let init = await_armed(host, "web")?;
        host.fly(&["secrets", "set", "KEY=new", "-a", "web"])?.ok()?;
        check_answer(&host.get(&address, 80, "/")?, "key=new\n").context("after the secret")?;
        check_gone(&init)?;

        let init = await_armed(host, "web")?;
        let id = only(host, "web")?.id;
        host.fly(&["machine", "update", &id, "-a", "web", "-e", "KEY=mine", "--skip-start", "-y"])?
            .ok()?;
        check_gone(&init).context("an update leaves it armed for what is of the past")?;
        check_answer(&host.get(&address, 80, "/")?, "key=new\n").context("a secret wins")?;

        let init = await_armed(host, "web")?;
        host.fly(&["apps", "destroy", "web", "--yes"])?.ok()?;
        check_gone(&init)?;
        wait_until("the shims to be gone", SOON, || Ok(waiting(host).is_empty().then_some(())))
    });
}

#[test]
fn a_request_in_the_middle_of_arming_is_answered_by_one_start() {
    on_quick_host(|host| {
        let address = hello(host, "web")?;
        let id = only(host, "web")?.id;
        for round in 0..10 {
            wait_asleep(host, "web")?;
            let before = only(host, "web")?.events("start");
            // Sooner or later in its making, as it happens.
            wait_until("arming to begin", SOON, || Ok((!waiting(host).is_empty()).then_some(())))?;
            let _used = in_use(host, &address)?;
            check_answer(&host.get(&address, 80, "/")?, "Hello")?;
            let (inside, shims) = (machine_processes(host, &id), host.perch_processes("shim"));
            let machine = only(host, "web")?;
            ensure!(
                (inside.len(), shims.len(), machine.events("start")) == (2, 1, before + 1),
                "round {round}: {inside:?}, {shims:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn what_was_armed_ends_with_its_server_and_is_never_taken_for_a_run() {
    on_quick_host(|host| {
        let address = hello(host, "web")?;
        for kill in [true, false] {
            let init = await_armed(host, "web")?;
            let starts = only(host, "web")?.events("start");
            if kill {
                host.kill_server()?
            } else {
                host.stop_server()?
            }
            check_gone(&init)?;
            wait_until("its shim to be gone", SOON, || Ok(waiting(host).is_empty().then_some(())))?;
            host.start_server()?;
            let machine = only(host, "web")?;
            ensure!(machine.state == "stopped", "it is {}", machine.state);
            ensure!(machine.events("start") == starts, "it was started");
            check_answer(&host.get(&address, 80, "/")?, "Hello")?;
            ensure!(!began_armed(&only(host, "web")?)?, "by what had ended");
        }
        Ok(())
    });
}

#[test]
fn down_with_purge_leaves_nothing_of_what_was_armed() {
    on(
        || {
            let mut host = Host::bare(Network::Open)?;
            host.configure(QUICK);
            Ok(host)
        },
        |host| {
            let before = host.surroundings(&host.data_dir())?;
            host.start_server()?;
            hello(host, "web")?;
            await_armed(host, "web")?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &data, "--purge"])?.ok()?;
            let after = host.surroundings(&host.data_dir())?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            let mut left = host.processes();
            left.retain(|process| process.state != 'Z');
            ensure!(left.is_empty(), "left behind: {left:?}");
            Ok(())
        },
    );
}

#[test]
fn no_more_are_armed_than_the_configuration_allows() {
    let config = format!("{QUICK}armed_max = 1\n");
    on(
        || Host::start_with(Network::Open, &config),
        |host| {
            hello(host, "first")?;
            let first = await_armed(host, "first")?;
            hello(host, "second")?;
            let second = await_armed(host, "second")?;
            check_gone(&first).context("the one that sleeps longer stays armed")?;
            ensure!(lives(&second) && waiting(host).len() == 1, "not one is armed");
            let shim = &waiting(host)[0];
            wait_until("the shim to have init alone", SOON, || {
                let all = host.processes();
                Ok((all.iter().filter(|it| it.parent == shim.pid).count() == 1).then_some(()))
            })?;
            check_is_small(&second, shim)?;
            host.stop_server()?;
            host.configure(&format!("{QUICK}armed_max = 1001\n"));
            ensure!(host.start_server().is_err(), "a thousand and one are taken");
            Ok(())
        },
    );
}

#[test]
fn a_machine_that_died_while_it_was_armed_starts_as_usual() {
    on_quick_host(|host| {
        let address = hello(host, "web")?;
        let init = await_armed(host, "web")?;
        init.kill()?;
        check_gone(&init)?;
        check_answer(&host.get(&address, 80, "/")?, "Hello").context("after its PID 1")?;
        ensure!(!began_armed(&only(host, "web")?)?, "by what had died");
        await_armed(host, "web")?;
        let shim = waiting(host).pop().context("no shim waits")?;
        shim.kill()?;
        check_gone(&shim)?;
        check_answer(&host.get(&address, 80, "/")?, "Hello").context("after its shim")?;
        ensure!(!began_armed(&only(host, "web")?)?, "by what had died");
        Ok(())
    });
}

#[test]
fn what_cannot_be_executed_when_it_is_told_to_go_ends_and_starts_as_usual() {
    on_quick_host(|host| {
        let address = hello(host, "web")?;
        let init = await_armed(host, "web")?;
        std::fs::remove_file(format!("/proc/{}/root/hello", init.pid))?;
        let _used = in_use(host, &address)?;
        check_answer(&host.get(&address, 80, "/")?, "Hello")?;
        let machine = only(host, "web")?;
        ensure!(!began_armed(&machine)?, "it started nevertheless");
        let (starts, exits) = (machine.events("start"), machine.events("exit"));
        ensure!((starts, exits) == (3, 2), "{starts} starts, {exits} exits: {}", machine.value);
        ensure!(machine.value["events"].to_string().contains("/hello"), "it does not say why");
        Ok(())
    });
}

#[test]
fn a_stop_that_comes_before_the_program_is_executed_is_not_lost() {
    on_quick_host(|host| {
        deploy(host, "web", &shell_image(host, "shows", SHOWS)?)?;
        let init = await_armed(host, "web")?;
        let id = only(host, "web")?.id;
        let ask = |verb: &str| {
            let path = format!("/v1/apps/web/machines/{id}/{verb}");
            let answer = host.request("POST", &path, "application/json", b"")?;
            ensure!(answer.status == 200, "{verb}: {answer:?}");
            Ok(())
        };
        let pid = rustix::process::Pid::from_raw(init.pid).context("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
        ask("start")?;
        wait_until("it to count as started", SOON, || {
            Ok((only(host, "web")?.state == "started").then_some(()))
        })?;
        ask("stop")?;
        wait_until("the signal to be on its way", SOON, || {
            Ok(is_pending(&init, rustix::process::Signal::INT)?.then_some(()))
        })?;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
        wait_asleep(host, "web")?;
        let events = only(host, "web")?.value["events"].clone();
        let exit = events.as_array().and_then(|all| all.iter().find(|it| it["type"] == "exit"));
        let exit = &exit.context("no exit")?["request"]["exit_event"];
        ensure!(exit["signal"] == 2, "not by the signal that it was sent: {exit}");
        Ok(())
    });
}

/// Whether somebody has sent it a signal that it has not looked at.
fn is_pending(process: &Process, signal: rustix::process::Signal) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let bits = of("ShdPnd:").context("the kernel does not tell")?;
    Ok(bits & (1 << (signal.as_raw() - 1)) != 0)
}

/// Long enough for a Machine to be armed that could be.
const LONG: Duration = Duration::from_secs(3);

#[test]
fn what_has_a_volume_or_wakes_by_nobody_is_not_armed() {
    on_quick_host(|host| {
        let image = hello_image(host)?;
        let mounts = format!("{SNIPPET}\n[mounts]\n  source = 'data'\n  destination = '/data'\n");
        let unwoken = SNIPPET.replace("auto_start_machines = true", "auto_start_machines = false");
        for (app, sections) in [("keeps", mounts), ("unwoken", unwoken)] {
            one_machine_of(host, app, &image, &sections)?;
        }
        hello(host, "web")?;
        for app in ["keeps", "unwoken", "web"] {
            wait_asleep(host, app)?;
        }
        // The last one shows that it is not for lack of time.
        await_armed(host, "web")?;
        perch_testkit::holds_for("one is armed", LONG, || Ok(waiting(host).len() == 1))
    });
}
