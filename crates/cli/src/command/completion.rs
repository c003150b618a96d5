//! `completion`: what a shell needs to complete our commands, made from their definitions.

use super::Context;
use crate::args::{Completion, Fly};
use clap::CommandFactory;

pub(super) fn run(context: &Context<'_>, args: &Completion) {
    context.console.line(script(args).trim_end());
}

fn script(args: &Completion) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut Fly::command(), args.name.as_str(), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap_complete::Shell;

    #[test]
    fn every_shell_learns_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(&Completion { shell, name: "fly".to_owned() });
            for word in ["allocate-v6", "flycast", "machine"] {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
    }

    #[test]
    fn an_alias_is_completed_under_its_name() {
        let args = Completion { shell: Shell::Bash, name: "perchfly".to_owned() };
        assert!(script(&args).contains("complete -F _perchfly"), "{}", script(&args));
    }
}
