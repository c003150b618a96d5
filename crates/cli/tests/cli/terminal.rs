//! A terminal sees colours and what moves; a pipe and a file never do. The terminal is a real one, held by
//! `script`.

use crate::fixture::{Fixture, oci_layout};
use perch_cli::Console;
use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

const ERASE: &str = "\x1b[J";
const GREEN: &str = "\x1b[32m";
/// Nothing that we print.
const END: &str = "the end of the test";

/// A pseudo-terminal of which we write the inner side and read the outer one.
struct Terminal {
    holder: Child,
    outer: BufReader<ChildStdout>,
    name: String,
}

impl Terminal {
    fn open() -> Self {
        let mut holder = Command::new("script")
            .args(["-q", "-c", "tty; exec cat", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is there, from bsdutils");
        let mut outer = BufReader::new(holder.stdout.take().expect("it is piped"));
        let mut name = String::new();
        outer.read_line(&mut name).expect("it names its terminal");
        Self { holder, outer, name: name.trim().to_owned() }
    }

    fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.name).expect("the inner side")
    }

    /// All that was written to it.
    fn seen(mut self) -> String {
        writeln!(self.file(), "{END}").expect("it is open");
        let mut seen = String::new();
        let mut line = Vec::new();
        while !seen.contains(END) {
            line.clear();
            assert_ne!(self.outer.read_until(b'\n', &mut line).expect("it is open"), 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&line));
        }
        seen.replace(END, "").replace("\r\n", "\n")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended with its terminal; a test that fails leaves nothing either.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Code and screen of a command on a terminal.
fn on_terminal(
    fixture: &Fixture,
    vars: &[(&str, &str)],
    interrupted: impl Future<Output = ()>,
    args: &[&str],
) -> (u8, String) {
    let terminal = Terminal::open();
    let env = fixture.environment(vars);
    let console = Console::on(terminal.file(), terminal.file(), terminal.file(), &env);
    let code = fixture.fly_on(&console, &env, interrupted, args);
    drop(console);
    (code, terminal.seen())
}

fn is_spinner(c: char) -> bool {
    ('⠀'..='⣿').contains(&c)
}

/// Whether a live line said this.
fn spins(screen: &str, text: &str) -> bool {
    let lines = screen.split(['\r', '\n', '\x1b']);
    lines.filter(|line| line.starts_with(is_spinner)).any(|line| line.ends_with(text))
}

/// Whether the last live line was taken away before what follows it was printed.
fn is_clean(screen: &str) -> bool {
    let last_live = screen.char_indices().filter(|(_, c)| is_spinner(*c) || *c == '░');
    let last_live = last_live.map(|(at, _)| at).next_back().unwrap_or(0);
    screen.rfind(ERASE).is_some_and(|at| last_live < at)
}

fn launched() -> Fixture {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let launch = ["launch", "--name", "web", "--image", "oci:img", "--no-deploy", "-y"];
    assert_eq!(fixture.fly(&launch).code, 0);
    fixture
}

#[test]
fn a_deploy_on_a_terminal_has_colours_a_bar_and_a_spinner_and_leaves_none_behind() {
    let (code, screen) = on_terminal(&launched(), &[], pending(), &["deploy"]);
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains(&format!("{GREEN}==> Verifying app config\x1b[0m\n")), "{screen:?}");
    assert!(screen.contains("Pushing the image ░"), "{screen:?}");
    assert!(spins(&screen, " Unpacking the image"), "{screen:?}");
    assert!(spins(&screen, " Waiting for m0 [app] to have state: started"), "{screen:?}");
    assert!(!screen.contains("> Waiting"), "what is under way is no line that stays: {screen:?}");
    assert!(screen.contains("  Machine m0 [app] has state: started\n"), "{screen:?}");
    assert!(!screen.contains("\x1b[?25l"), "the cursor is never hidden");
    assert!(is_clean(&screen), "{screen:?}");
}

#[test]
fn a_pipe_gets_plain_lines() {
    let fixture = launched();
    for args in [&["deploy"][..], &["status"], &["machine", "list"], &["deploy", "-e", "A=b"]] {
        let run = fixture.fly(args);
        let all = format!("{}{}", run.out, run.err);
        assert!(run.code == 0 && !all.contains('\x1b') && !all.contains(is_spinner), "{all:?}");
    }
    assert!(fixture.fly(&["deploy"]).out.contains("> [1/2] Waiting for m0 [app]"));
}

#[test]
fn what_goes_to_a_file_is_plain_though_the_other_stream_is_a_terminal() {
    let fixture = launched();
    let (terminal, file) = (Terminal::open(), tempfile::NamedTempFile::new().expect("a file"));
    let env = fixture.environment(&[]);
    let out = file.reopen().expect("it is there");
    let console = Console::on(terminal.file(), out, terminal.file(), &env);
    assert_eq!(fixture.fly_on(&console, &env, pending(), &["deploy"]), 0);
    drop(console);
    let text = std::fs::read_to_string(file.path()).expect("it is text");
    assert!(!text.contains('\x1b') && text.contains("> Waiting for m0 [app]"), "{text:?}");
    let screen = terminal.seen();
    assert!(screen.contains(GREEN) && !screen.contains(is_spinner), "{screen:?}");
}

#[test]
fn no_color_takes_colours_only_and_a_dumb_terminal_gets_nothing_that_moves() {
    let fixture = launched();
    for vars in [[("NO_COLOR", "1")], [("CLICOLOR", "0")]] {
        let (_, screen) = on_terminal(&fixture, &vars, pending(), &["deploy"]);
        assert!(!screen.contains(GREEN) && !screen.contains("\x1b[1m"), "{screen:?}");
        assert!(screen.contains(is_spinner), "{screen:?}");
    }
    let (_, screen) = on_terminal(&fixture, &[("TERM", "dumb")], pending(), &["deploy"]);
    assert!(!screen.contains('\x1b') && !screen.contains(is_spinner), "{screen:?}");
}

#[test]
fn colours_can_be_forced_into_a_pipe_and_nothing_else_comes_along() {
    let fixture = Fixture::deployed();
    let (out, err) = (tempfile::NamedTempFile::new(), tempfile::tempfile());
    let (out, err) = (out.expect("a file"), err.expect("a file"));
    let env = fixture.environment(&[("CLICOLOR_FORCE", "1")]);
    let input = File::open("/dev/null").expect("it is there");
    let console = Console::on(input, out.reopen().expect("it is there"), err, &env);
    assert_eq!(fixture.fly_on(&console, &env, pending(), &["status"]), 0);
    let text = std::fs::read_to_string(out.path()).expect("it is text");
    assert!(text.contains("\x1b[1mApp\x1b[0m\n") && !text.contains(ERASE), "{text:?}");
}

#[test]
fn ctrl_c_takes_what_moves_away() {
    let fixture = launched();
    for (method, part) in [("PUT", "manifests"), ("GET", "/wait$")] {
        let signal = fixture.server().when_called(method, part);
        let (code, screen) = on_terminal(&fixture, &[], signal, &["deploy"]);
        assert_eq!(code, 127, "{screen:?}");
        assert!(screen.contains('░') && is_clean(&screen), "{method} {part}: {screen:?}");
    }
}

#[test]
fn an_error_comes_after_what_moved_is_gone_and_its_word_is_red() {
    let fixture = Fixture::deployed();
    fixture.server().crash_from_now_on("panic: no database");
    let (code, screen) = on_terminal(&fixture, &[], pending(), &["deploy"]);
    assert_eq!(code, 1, "{screen:?}");
    assert!(screen.contains("\x1b[31mError: \x1b[0m"), "{screen:?}");
    assert!(screen.contains(is_spinner) && is_clean(&screen), "{screen:?}");
}

#[test]
fn a_start_shows_that_it_waits() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m0", "stopped");
    let (code, screen) = on_terminal(&fixture, &[], pending(), &["machine", "start", "m0"]);
    assert_eq!(code, 0, "{screen:?}");
    assert!(spins(&screen, " Starting m0") && is_clean(&screen), "{screen:?}");
}
