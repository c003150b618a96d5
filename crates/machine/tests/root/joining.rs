//! Programs that join a running Machine.

use std::sync::Arc;
use std::time::Duration;

use perch_machine::{ExecError, ExecRequest, Machine, Running, Secrets, Streams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Fixture, Tested};

pub(crate) const TESTS: &[crate::Test] = &[
    ("what_joins_is_no_more_powerful_than_the_program", what_joins_is_no_more_powerful),
    ("what_joins_a_user_s_program_holds_nothing", what_joins_a_users_program_holds_nothing),
    ("what_joins_has_not_the_server_s_priority", what_joins_has_not_the_servers_priority),
    ("what_joins_has_not_the_score_of_a_sleeper", what_joins_has_not_the_score_of_a_sleeper),
    ("what_joins_is_read_and_ends_as_any_program", what_joins_is_read_and_ends),
    ("what_joins_has_a_terminal_of_the_machine", what_joins_has_a_terminal),
    ("what_cannot_join_says_why", what_cannot_join_says_why),
    ("a_hangup_ends_what_joined", a_hangup_ends_what_joined),
    ("a_machine_ends_with_what_joined_it", a_machine_ends_with_what_joined_it),
];

const PATIENCE: Duration = Duration::from_secs(20);
const WAITS: &str = "echo ready; exec /bin/busybox sleep 1000";
/// What the kernel says of a process's power and place.
const POWER: &str = "/bin/busybox grep -E '^(Uid|Gid|Groups|Cap|NoNew|Sec)' /proc/self/status; \
                     for ns in user mnt pid net uts ipc cgroup; do /bin/busybox readlink /proc/self/ns/$ns; done; \
                     /bin/busybox cat /proc/self/cgroup /proc/self/limits /proc/self/oom_score_adj";

fn request(argv: &[&str]) -> ExecRequest {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    ExecRequest { argv, user: None, terminal: None, env: Vec::new() }
}

fn script(text: &str) -> ExecRequest {
    request(&["/bin/sh", "-c", text])
}

async fn run(machine: &Arc<Machine>, request: &ExecRequest) -> Result<Running, ExecError> {
    let secrets = Secrets::new(vec![("KEY".to_owned(), "hunter2".to_owned())]);
    let joined = machine.exec(request, &secrets);
    tokio::time::timeout(PATIENCE, joined).await.expect("a start within time")
}

/// Runs it to its end: exit code, what it wrote, what it complained about.
async fn ended(machine: &Arc<Machine>, request: &ExecRequest) -> (i32, String, String) {
    let mut running = run(machine, request).await.expect("it runs");
    let Streams::Pipes { stdin, mut stdout, mut stderr } = running.streams else {
        panic!("no terminal was asked for")
    };
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let read = async {
        stdout.read_to_string(&mut out).await.expect("text");
        stderr.read_to_string(&mut err).await.expect("text");
        running.control.ended().await.expect("an end").0
    };
    let code = tokio::time::timeout(PATIENCE, read).await.expect("an end within time");
    (code, out, err)
}

fn what_joins_is_no_more_powerful(fixture: &Fixture) -> Tested {
    check_power(fixture, "")
}

fn what_joins_a_users_program_holds_nothing(fixture: &Fixture) -> Tested {
    check_power(fixture, "app")
}

/// What joins is exactly what the program is.
fn check_power(fixture: &Fixture, user: &str) -> Tested {
    let mut spec = fixture.spec(&format!("{POWER}; {WAITS}"));
    spec.user = user.to_owned();
    spec.env = vec![("A".to_owned(), "b".to_owned())];
    spec.workdir = "/srv".to_owned();
    let machine = Arc::new(fixture.launch(&spec)?);
    fixture.await_line("ready")?;
    let mut own = fixture.lines()?;
    own.pop();
    fixture.block_on(async {
        let (code, joined, complaints) = ended(&machine, &script(POWER)).await;
        assert_eq!((code, complaints.as_str()), (0, ""));
        assert_eq!(joined.lines().collect::<Vec<_>>(), own, "as {user:?}");
        let (_, text, _) = ended(&machine, &script("echo $A $KEY $PWD; umount /proc")).await;
        assert_eq!(text, "b hunter2 /srv\n");
        let (_, fds, _) = ended(&machine, &script("/bin/busybox ls /proc/self/fd")).await;
        assert_eq!(fds.split_ascii_whitespace().count(), 4, "descriptors: {fds}");
    });
    Ok(())
}

fn what_joins_has_not_the_servers_priority(fixture: &Fixture) -> Tested {
    let machine = Arc::new(fixture.launch(&fixture.spec(WAITS))?);
    fixture.await_line("ready")?;
    let nice = script("/bin/busybox cut -d ' ' -f 19 /proc/self/stat");
    rustix::process::setpriority_process(None, -10)?;
    let (code, out, err) = fixture.block_on(ended(&machine, &nice));
    rustix::process::setpriority_process(None, 0)?;
    assert_eq!((code, out.trim(), err.as_str()), (0, "0", ""));
    Ok(machine.kill()?)
}

/// One that has just been woken may still have it.
fn what_joins_has_not_the_score_of_a_sleeper(fixture: &Fixture) -> Tested {
    let machine = Arc::new(fixture.launch(&fixture.spec(WAITS))?);
    fixture.await_line("ready")?;
    let of_program = format!("/proc/{}/oom_score_adj", machine.pid());
    let usual = std::fs::read_to_string(&of_program)?;
    std::fs::write(of_program, "999")?;
    let score = script("/bin/busybox cat /proc/self/oom_score_adj");
    let (code, out, err) = fixture.block_on(ended(&machine, &score));
    assert_eq!((code, out, err.as_str()), (0, usual, ""));
    Ok(machine.kill()?)
}

fn what_joins_is_read_and_ends(fixture: &Fixture) -> Tested {
    let machine = Arc::new(fixture.launch(&fixture.spec(WAITS))?);
    fixture.block_on(async {
        let (code, out, err) = ended(&machine, &script("echo out; echo err >&2; exit 3")).await;
        assert_eq!((code, out.as_str(), err.as_str()), (3, "out\n", "err\n"));
        let (code, ..) = ended(&machine, &script("kill -9 $$")).await;
        assert_eq!(code, 137);
        // More than all buffers on the way hold.
        let megabyte = "/bin/busybox dd if=/dev/zero bs=1k count=1024 2>/dev/null";
        let (_, out, _) = ended(&machine, &script(megabyte)).await;
        assert_eq!(out.len(), 1024 * 1024);
        let as_user = ExecRequest { user: Some("app".to_owned()), ..script("/bin/busybox id -u") };
        assert_eq!(ended(&machine, &as_user).await.1, "1000\n");

        let mut running = run(&machine, &request(&["/bin/busybox", "cat"])).await.expect("it runs");
        let Streams::Pipes { mut stdin, mut stdout, .. } = running.streams else { panic!("pipes") };
        stdin.write_all(b"echoed").await.expect("it reads");
        drop(stdin);
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.expect("text");
        assert_eq!(
            (text.as_str(), running.control.ended().await.expect("an end").0),
            ("echoed", 0)
        );
    });
    Ok(())
}

async fn until(terminal: &perch_machine::Terminal, text: &mut String, wanted: &str) {
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read = tokio::time::timeout(PATIENCE, terminal.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| panic!("no {wanted:?} in {text:?}")).expect("read");
        assert!(0 < read, "ended without {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

fn what_joins_has_a_terminal(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec(WAITS);
    spec.user = "app".to_owned();
    let machine = Arc::new(fixture.launch(&spec)?);
    fixture.block_on(async {
        let size = TerminalSize { rows: 33, columns: 99 };
        let shell = ExecRequest { terminal: Some(size), ..request(&[]) };
        let mut running = run(&machine, &shell).await.expect("a shell");
        let Streams::Terminal(terminal) = &running.streams else { panic!("no terminal") };
        let mut text = String::new();
        terminal.write(b"stty size; tty; : >/dev/tty && echo o''wn\n").await.expect("typed");
        until(terminal, &mut text, "own\r\n").await;
        assert!(text.contains("33 99\r\n") && text.contains("/dev/pts/0\r\n"), "{text:?}");
        terminal.resize(TerminalSize { rows: 10, columns: 20 }).expect("resized");
        terminal.write(b"stty size; exit 7\n").await.expect("typed");
        until(terminal, &mut text, "10 20\r\n").await;
        assert_eq!(running.control.ended().await.expect("an end"), (7, None));
    });
    Ok(())
}

fn what_cannot_join_says_why(fixture: &Fixture) -> Tested {
    let mut spec = fixture.spec(WAITS);
    spec.pids_max = Some(8);
    let machine = Arc::new(fixture.launch(&spec)?);
    fixture.block_on(async {
        let refused = async |request: ExecRequest| run(&machine, &request).await.expect_err("no");
        let error = refused(request(&["nothing"])).await;
        assert!(matches!(error, ExecError::Program { code: 127, .. }), "{error:?}");
        let error = refused(request(&["/etc/passwd"])).await;
        assert!(matches!(error, ExecError::Program { code: 126, .. }), "{error:?}");
        let error =
            refused(ExecRequest { user: Some("who".to_owned()), ..request(&["/bin/sh"]) }).await;
        assert!(matches!(&error, ExecError::User(why) if why.contains("who")), "{error:?}");
        let mut sleepers = Vec::new();
        let full = loop {
            match run(&machine, &request(&["/bin/busybox", "sleep", "1000"])).await {
                Ok(running) if sleepers.len() < 8 => sleepers.push(running),
                Ok(running) => panic!("{running:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(full, ExecError::Full) && sleepers.len() < 8, "{full:?}");
    });
    machine.kill()?;
    fixture.wait(&machine)?;
    let error = fixture.block_on(run(&machine, &script("true"))).expect_err("it is dead");
    assert!(matches!(error, ExecError::NotRunning), "{error:?}");
    Ok(())
}

fn a_hangup_ends_what_joined(fixture: &Fixture) -> Tested {
    let machine = Arc::new(fixture.launch(&fixture.spec(WAITS))?);
    let obedient = script("echo $$; /bin/busybox sleep 1000");
    let stubborn = script("trap '' HUP; echo $$; while :; do /bin/busybox sleep 1; done");
    for request in [obedient.clone(), stubborn, obedient] {
        fixture.block_on(async {
            let running = run(&machine, &request).await.expect("it runs");
            machine.freeze().expect("a freezer");
            machine.frozen().await.expect("frozen");
            drop(running);
        });
        // While a process dies of it, the kernel calls the others not frozen for a moment.
        fixture.until("a hangup to wake nothing", || Ok(machine.is_frozen()))?;
        machine.thaw()?;
        fixture.until("its end", || Ok(machine.ps()?.len() == 2))?;
    }
    Ok(())
}

fn a_machine_ends_with_what_joined_it(fixture: &Fixture) -> Tested {
    let machine = Arc::new(fixture.launch(&fixture.spec(WAITS))?);
    let mut running = fixture
        .block_on(run(&machine, &request(&["/bin/busybox", "sleep", "1000"])))
        .expect("it runs");
    machine.kill()?;
    fixture.wait(&machine)?;
    assert_eq!(fixture.block_on(running.control.ended())?, (137, Some(9)));
    assert!(fixture.cgroups()?.is_empty());
    Ok(())
}
