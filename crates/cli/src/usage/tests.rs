use super::*;
use crate::console::tests::captured;
use crate::flyctl;

fn stopped(line: &str) -> String {
    let args = line.split(' ').map(OsString::from).collect();
    match parse(args, &captured().0) {
        Ok(_) => "a command".to_owned(),
        Err(Stop::Help(_)) => "help".to_owned(),
        Err(Stop::Refused(text)) => text,
        Err(Stop::Wrong(wrong)) => format!("{wrong:?}"),
    }
}

/// What `--help` of every command of ours is, by its whole name without `fly`.
fn ours() -> Vec<String> {
    let mut root = Fly::command();
    root.build();
    let mut names = Vec::new();
    collect(&root, "", &mut names);
    names
}

fn collect(command: &clap::Command, path: &str, names: &mut Vec<String>) {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let name = format!("{path} {}", sub.get_name()).trim_start().to_owned();
        collect(sub, &name, names);
        names.push(name);
    }
}

#[test]
fn a_command_of_flyctl_that_is_not_here_says_what_to_use_whatever_follows() {
    for line in [
        "fly ssh issue",
        "fly ssh issue --help",
        "fly ssh -a web issue --hours 3",
        "fly help ssh issue",
        "fly -t token ssh issue --agent x y --frobnicate",
        "fly --verbose ssh --app web issue",
    ] {
        let text = stopped(line);
        assert!(text.starts_with("`fly ssh issue` is not here: "), "{line}: {text}");
        assert!(text.contains("fly ssh console"), "{line}: {text}");
    }
}

#[test]
fn aliases_hidden_commands_and_commands_below_ours_are_refused_by_their_names() {
    for (line, name) in [
        ("fly wg list", "wireguard list"),
        ("fly ssh sftp get /x", "ssh sftp get"),
        ("fly open", "open"),
        ("fly launch plan propose", "launch plan propose"),
        ("fly postgres barman check", "postgres barman check"),
        ("fly pg", "postgres"),
    ] {
        let text = stopped(line);
        assert!(text.starts_with(&format!("`fly {name}` is not here: ")), "{line}: {text}");
    }
}

#[test]
fn every_command_of_flyctl_is_ours_or_has_an_answer_and_never_both() {
    let ours = ours();
    for (path, _) in flyctl::Tree::read().iter().filter(|(path, _)| *path != "help") {
        let answer = answers::of_command(path).map(|answer| answer.word);
        let group = ours.iter().any(|name| name.starts_with(&format!("{path} ")));
        let is_ours = ours.iter().any(|name| name == path);
        match (is_ours, answer) {
            // Of a group the line is about what is not here.
            (true, Some(Word::Refused)) if !group => {
                panic!("`{path}` is here: remove its refusal from answers.txt")
            }
            (false, None) => {
                assert!(group, "`{path}` has no line in answers.txt");
            }
            (false, Some(Word::Same | Word::Differs)) if !path.starts_with("completion ") => {
                panic!("`{path}` is not here, and answers.txt does not refuse it")
            }
            _ => {}
        }
    }
}

#[test]
fn no_refusal_is_longer_than_a_line_of_a_terminal_or_two() {
    for (path, _) in flyctl::Tree::read().iter() {
        let text = refusal(path);
        assert!(!text.contains('\n') && text.chars().count() < 240, "{text}");
    }
}

#[test]
fn a_flag_that_changes_nothing_is_left_out_with_a_note() {
    assert_eq!(stopped("fly deploy --remote-only --depot=false -a x"), "a command");
    assert_eq!(stopped("fly deploy --compression gzip"), "a command");
    assert_eq!(stopped("fly launch --now --no-db --deploy-retries 3"), "a command");
}

#[test]
fn a_flag_that_would_change_something_is_refused_with_the_reason() {
    for (line, flag) in [
        ("fly deploy --nixpacks", "nixpacks"),
        ("fly deploy -s SIGINT", "signal"),
        ("fly deploy -ys SIGINT", "signal"),
        ("fly deploy --vm-gpukind l40s", "vm-gpu-kind"),
    ] {
        let text = stopped(line);
        assert!(text.contains(&format!("--{flag}` is not here: ")), "{line}: {text}");
    }
    assert_eq!(stopped("fly deploy --nixpacks=false"), "a command", "it says nothing");
}

#[test]
fn what_nobody_knows_has_flyctls_words() {
    for (line, words) in [
        ("fly frobnicate", "unknown command \\\\\"frobnicate\\\\\" for \\\\\"fly\\\\\""),
        ("fly ips frobnicate", "unknown command \\\\\"frobnicate\\\\\" for \\\\\"fly ips\\\\\""),
        ("fly deploi", "Did you mean this?"),
        ("fly status --frobnicate=1", "unknown flag: --frobnicate"),
        ("fly status -x", "unknown shorthand flag: 'x' in -x"),
        ("fly status -jx", "unknown shorthand flag: 'x' in -jx"),
        ("fly status --app", "flag needs an argument: --app"),
        ("fly deploy --vm-cpus many", "invalid argument"),
        ("fly ips release -a x", "requires at least 1 arg(s), only received 0"),
        ("fly proxy", "accepts between 1 and 2 arg(s), received 0"),
        ("fly completion tcsh", "invalid argument \\\\\"tcsh\\\\\" for \\\\\"fly completion\\\\\""),
    ] {
        let text = stopped(line).replace("\\\"", "\\\\\"");
        assert!(text.contains(words), "{line}: {text}");
    }
}

#[test]
fn a_flag_given_twice_has_its_last_value_as_pflag_has_it() {
    assert_eq!(stopped("fly status -a x -a y --json --json=false"), "a command");
}

#[test]
fn every_boolean_takes_a_value_as_pflag_has_it() {
    for line in ["fly machine list -q=true", "fly machine list --quiet=false -a x", "fly logs -n=0"]
    {
        assert_eq!(stopped(line), "a command", "{line}");
    }
    assert!(stopped("fly machine list --quiet=maybe").starts_with("Wrong"));
}

#[test]
fn the_version_is_a_flag_of_the_program_as_well() {
    assert_eq!(stopped("fly --version"), "a command");
    assert_eq!(stopped("fly -v"), "a command");
    assert!(stopped("fly apps list --version").contains("unknown flag: --version"));
}

#[test]
fn help_is_help_at_every_place() {
    for line in [
        "fly",
        "fly help",
        "fly -h",
        "fly apps",
        "fly help apps list",
        "fly apps ls --help",
        "fly apps help list",
    ] {
        assert_eq!(stopped(line), "help", "{line}");
    }
}
