//! Questions on a real pseudo-terminal: flyctl-cli 1.3 and 1.4.

use crate::fixture::{Fixture, oci_layout};
use perch_cli::Console;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};

const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const RIGHT: &str = "\x1b[C";

/// What one run did at a terminal.
struct Session {
    code: u8,
    /// Everything that appeared on the terminal.
    screen: String,
    err: String,
}

fn at_terminal(fixture: &Fixture, args: &[&str], answers: &[(&str, &str)]) -> Session {
    at_terminal_with(fixture, &[("NO_COLOR", "1")], args, answers)
}

/// Runs `fly` at a terminal of 80 columns: each answer is typed when its question has appeared.
fn at_terminal_with(
    fixture: &Fixture,
    vars: &[(&str, &str)],
    args: &[&str],
    answers: &[(&str, &str)],
) -> Session {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("it is ours");
    unlockpt(&master).expect("it is ours");
    let name = ptsname(&master, Vec::new()).expect("it has a name");
    let name = name.to_str().expect("text").to_owned();
    let terminal = File::options().read(true).write(true).open(&name).expect("it is there");
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("it is ours");
    let answers: Vec<_> = answers
        .iter()
        .map(|(question, keys)| ((*question).to_owned(), (*keys).to_owned()))
        .collect();
    let user = std::thread::spawn(move || answer(File::from(master), answers));
    let err = tempfile::NamedTempFile::new().expect("a file");
    let env = fixture.environment(vars);
    let input = terminal.try_clone().expect("a descriptor");
    let console = Console::on(input, terminal, err.reopen().expect("it is there"), &env);
    let code = fixture.fly_on(&console, &env, std::future::pending(), args);
    drop(console);
    let screen = user.join().expect("the user does not panic");
    let err = std::fs::read_to_string(err.path()).expect("it is text");
    Session { code, screen, err }
}

/// Types each answer after its question, and reads until nobody has the terminal open any more.
fn answer(mut master: File, answers: Vec<(String, String)>) -> String {
    let mut screen = String::new();
    let mut seen = 0;
    let mut answers = answers.into_iter().peekable();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        screen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if let Some((question, keys)) = answers.peek()
            && let Some(at) = screen[seen..].find(question.as_str())
        {
            seen += at + question.len();
            master.write_all(keys.as_bytes()).expect("it is open");
            answers.next();
        }
    }
    assert_eq!(answers.next(), None, "a question never came:\n{screen}");
    screen
}

#[test]
fn a_machine_is_chosen_by_arrows_or_by_typing_a_part() {
    let fixture = Fixture::deployed();
    for keys in [format!("{DOWN}\r"), format!("{UP}\r"), "M1\r".to_owned(), "\t\r".to_owned()] {
        let answers =
            [("? Select a machine:  [Use arrows to move, type to filter]", keys.as_str())];
        let run = at_terminal(&fixture, &["machine", "status"], &answers);
        assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
        let option = "m0 m0 (started, region lcl, process group 'app')";
        assert!(run.screen.contains(&format!("> {option}")), "{}", run.screen);
        assert!(run.screen.contains("? Select a machine: m1 m1 (started"), "{}", run.screen);
        assert!(run.screen.contains("Machine ID: m1\r\n"), "{keys:?}\n{}", run.screen);
    }
}

#[test]
fn several_machines_are_chosen_by_space_or_all_at_once() {
    let fixture = Fixture::deployed();
    let question = "? Select machines:  [Use arrows to move, space to select, <right> to all, <left> \
                    to none, type to filter]";
    let keys = format!("{DOWN} \r");
    let run = at_terminal(&fixture, &["machine", "stop"], &[(question, &keys)]);
    assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
    assert!(run.screen.contains("> [x]  m1 m1 (started"), "{}", run.screen);
    assert!(run.screen.ends_with("m1 has been successfully stopped\r\n"), "{}", run.screen);
    assert!(!run.screen.contains("m0 has been"), "{}", run.screen);
    let keys = format!("{RIGHT}\r");
    let run = at_terminal(&fixture, &["machine", "start"], &[(question, &keys)]);
    assert!(
        run.screen.ends_with("m0 has been started\r\nm1 has been started\r\n"),
        "{}",
        run.screen
    );
    let run = at_terminal(&fixture, &["machine", "start"], &[(question, "\r")]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: no machines selected\n"), "{}", run.err);
}

#[test]
fn ctrl_c_at_a_question_ends_silently_with_127_and_gives_the_terminal_back() {
    let fixture = Fixture::deployed();
    for (args, question) in [
        (&["machine", "status"][..], "Select a machine:"),
        (&["apps", "destroy", "web"], "? Destroy app web? (y/N) "),
        (&["apps", "create"], "Choose an app name (leave blank to generate one):"),
        (&["logs", "--select"], "Select a machine:"),
        (&["proxy", "0:80", "-s"], "Select instance:"),
    ] {
        let run = at_terminal(&fixture, args, &[(question, "\x03")]);
        assert_eq!(run.code, 127, "{args:?}\n{}\n{}", run.screen, run.err);
        assert!(!run.err.contains("Error"), "{args:?}\n{}", run.err);
    }
    assert_eq!(fixture.server().apps(), ["web"]);
}

#[test]
fn yes_and_no_are_understood_and_other_words_are_asked_again() {
    let fixture = Fixture::deployed();
    let question = "? Destroy app web? (y/N) ";
    for keys in ["n\r", "\r", "NO\r"] {
        let run = at_terminal(&fixture, &["apps", "destroy", "web"], &[(question, keys)]);
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(run.screen.contains("? Destroy app web? No\r\n"), "{}", run.screen);
        assert_eq!(run.err, "Destroying an app is not reversible.\n");
        assert_eq!(fixture.server().apps(), ["web"]);
    }
    let answers = [(question, "sure\r"), ("please try again.", "x\x7fYes\r")];
    let run = at_terminal(&fixture, &["apps", "destroy", "web"], &answers);
    assert!(run.screen.contains("Sorry, your reply was invalid: \"sure\""), "{}", run.screen);
    assert!(
        run.screen.ends_with("? Destroy app web? Yes\r\nDestroyed app web\r\n"),
        "{}",
        run.screen
    );
    assert!(fixture.server().apps().is_empty());
}

#[test]
fn volumes_go_with_their_app_after_a_second_yes_and_stay_without_it() {
    let app = ("? Destroy app web? (y/N) ", "y\r");
    let question = "? Destroy its volumes with all their data, too? (y/N) ";
    for (keys, left, last) in [
        ("y\r", &[][..], "Destroyed volume ID: vol_2 name: logs\r\n"),
        ("n\r", &["vol_1", "vol_2"], "Destroyed app web\r\n"),
    ] {
        let fixture = Fixture::new();
        fixture.fly(&["apps", "create", "web"]);
        fixture.server().add_volume("web", "vol_1", "data");
        fixture.server().add_volume("web", "vol_2", "logs");
        let run = at_terminal(&fixture, &["apps", "destroy", "web"], &[app, (question, keys)]);
        assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
        assert!(run.screen.ends_with(last), "{}", run.screen);
        assert!(fixture.server().apps().is_empty());
        assert_eq!(fixture.server().volumes(), left);
    }
}

#[test]
fn a_name_is_typed_or_generated_and_an_organization_is_chosen() {
    let fixture = Fixture::new();
    fixture.server().add_organization("team");
    let name = "? Choose an app name (leave blank to generate one): ";
    let org = "? Select Organization:";
    let keys = format!("{DOWN}\r");
    let run =
        at_terminal(&fixture, &["apps", "create"], &[(name, "weeb\x7f\x7fb\r"), (org, &keys)]);
    assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
    assert!(run.screen.contains("> Personal (personal)\r\n"), "{}", run.screen);
    assert!(run.screen.contains("? Select Organization: TEAM (team)\r\n"), "{}", run.screen);
    assert!(run.screen.ends_with("New app created: web\r\n"), "{}", run.screen);
    assert_eq!(fixture.fly(&["apps", "list", "-q", "-o", "team"]).out, " web \n\n");
    let run = at_terminal(&fixture, &["apps", "create", "-o", "team"], &[(name, "\r")]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(fixture.server().apps().len(), 2);
}

#[test]
fn a_launch_can_be_tweaked_before_anything_is_made() {
    let fixture = Fixture::new();
    fixture.server().add_organization("team");
    oci_layout(&fixture.path("img"));
    fixture.fly(&["apps", "create", "taken", "-o", "team"]);
    let launch = ["launch", "--name", "web", "--image", "oci:img", "--no-deploy"];
    let down = format!("{DOWN}\r");
    let answers = [
        ("? Do you want to tweak these settings before proceeding? (y/N) ", "y\r"),
        ("? App name: (web) ", "taken\r"),
        ("? App name: (web) ", "blog\r"),
        ("? Select Organization:", &down),
        ("? Select region:", "here\x7f\x7f\x7f\x7felse\r"),
    ];
    let run = at_terminal(&fixture, &launch, &answers);
    assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
    assert!(run.err.contains("App 'taken' already exists"), "{}", run.err);
    assert!(run.screen.contains("? Select region: Elsewhere (rmt)\r\n"), "{}", run.screen);
    assert!(run.screen.contains("Region:       rmt                    (chosen by you)\r\n"));
    assert!(run.screen.contains("Created app 'blog' in organization 'team'\r\n"), "{}", run.screen);
    let file = std::fs::read_to_string(fixture.path("fly.toml")).expect("it is written");
    assert!(file.contains("app = 'blog'\nprimary_region = 'rmt'\n"), "{file}");
}

#[test]
fn addresses_are_offered_and_allocated_after_a_yes() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let anyway = "? Would you like to allocate IP addresses anyway? (y/N) ";
    let run = at_terminal(&fixture, &["ips", "allocate", "-a", "web"], &[(anyway, "n\r")]);
    assert_eq!((run.code, fixture.server().addresses("web").len()), (0, 0), "{}", run.err);
    let offer = "? Would you like to allocate the following addresses?\r\n    IPv4: Shared\r\n    IPv6: \
                 Dedicated (y/N) ";
    let answers = [(anyway, "y\r"), (offer, "y\r")];
    let run = at_terminal(&fixture, &["ips", "allocate", "-a", "web"], &answers);
    assert_eq!(run.code, 0, "{}\n{}", run.screen, run.err);
    assert!(run.screen.contains("Allocating shared IPv4...\r\n"), "{}", run.screen);
    assert_eq!(fixture.server().addresses("web"), ["shared_v4", "v6"]);
}

#[test]
fn a_table_that_is_too_wide_goes_through_the_users_pager() {
    let fixture = Fixture::deployed();
    let wide = at_terminal_with(&fixture, &[("PAGER", "tr a-z A-Z")], &["machine", "list"], &[]);
    assert!(wide.screen.contains(" M0 │ M0   │ STARTED │"), "{}", wide.screen);
    let none = at_terminal_with(&fixture, &[("PAGER", "cat")], &["machine", "list"], &[]);
    assert!(none.screen.contains(" m0 │ m0   │ started │"), "{}", none.screen);
}

#[test]
fn a_watch_clears_the_screen_and_ends_well_with_ctrl_c() {
    let fixture = Fixture::deployed();
    // Nothing is asked, so Ctrl-C is a signal here, which the terminal of this test sends to nobody.
    let run = at_terminal(&fixture, &["status", "--watch", "--rate", "0"], &[]);
    assert_eq!(run.code, 1);
    assert_eq!(run.err, "Error: --rate must be in the [1, 3600] range\n");
}
