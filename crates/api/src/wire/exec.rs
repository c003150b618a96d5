//! Programs that are run in a started Machine, beside its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ApiError, null_default, schema};

/// Body of `POST …/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [
    {"required": ["cmd"], "properties": {"cmd": {"type": "string", "minLength": 1}}},
    {"required": ["command"], "properties": {"command": {"type": "array", "minItems": 1}}},
]))]
pub struct ExecInput {
    /// Program and arguments in one text, taken apart as a shell does it; no shell runs it.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub cmd: String,
    /// Program and arguments; it wins over `cmd`.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub command: Vec<String>,
    /// What the program reads.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub stdin: String,
    /// After so many seconds it is killed; 0 = 60, more than 3600 is 3600.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub timeout: u64,
    /// Machines here have no containers; must be empty.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 0), transform = schema::nullable)]
    pub container: String,
}

/// Answer of `POST …/exec`, also when the program fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExecAnswer {
    /// Exit code; 128 + signal when killed by one, 126 or 127 when it could not be executed.
    pub exit_code: i32,
    /// The signal that killed it; 0 = none.
    pub exit_signal: i32,
    /// What it wrote, at most 1 MiB; bytes that are no text are replaced.
    #[serde(deserialize_with = "null_default")]
    pub stdout: String,
    /// What it complained about, likewise.
    #[serde(deserialize_with = "null_default")]
    pub stderr: String,
}

/// What a console is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleInput {
    /// Program and arguments in one text as in [`ExecInput::cmd`]; empty = the user's shell.
    pub cmd: String,
    /// User; empty = the image's.
    pub user: String,
    /// Lines and columns of the terminal; `None` = no terminal, but pipes.
    pub terminal: Option<(u16, u16)>,
    /// The terminal's kind, for `TERM`.
    pub term: String,
}

impl ExecInput {
    /// Program and arguments.
    ///
    /// # Errors
    /// 422 when there is no program, or quotes are not closed.
    pub fn argv(&self) -> Result<Vec<String>, ApiError> {
        let argv = if self.command.is_empty() { split(&self.cmd)? } else { self.command.clone() };
        if argv.first().is_none_or(String::is_empty) {
            return Err(ApiError::invalid("no program is given; name one in cmd or command"));
        }
        Ok(argv)
    }
}

impl ConsoleInput {
    /// Program and arguments; empty = the user's shell.
    ///
    /// # Errors
    /// 422 when quotes are not closed.
    pub fn argv(&self) -> Result<Vec<String>, ApiError> {
        split(&self.cmd)
    }
}

/// Takes a text apart by a shell's rules for quotes and backslashes, and by no other of its rules.
fn split(text: &str) -> Result<Vec<String>, ApiError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    let unclosed = |what: &str| Err(ApiError::invalid(format!("{what} in {text:?}")));
    while let Some(next) = chars.next() {
        match next {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return unclosed("nothing follows the last backslash"),
            },
            '\'' => {
                let (inside, rest) = match chars.as_str().split_once('\'') {
                    Some(parts) => parts,
                    None => return unclosed("a quote is not closed"),
                };
                word.get_or_insert_default().push_str(inside);
                chars = rest.chars();
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some('\n') => {}
                            Some(special @ ('"' | '\\' | '$' | '`')) => word.push(special),
                            Some(other) => word.extend(['\\', other]),
                            None => return unclosed("a quote is not closed"),
                        },
                        Some(other) => word.push(other),
                        None => return unclosed("a quote is not closed"),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, words: &[&str]) {
        assert_eq!(
            split(text),
            Ok(words.iter().map(|word| (*word).to_owned()).collect()),
            "{text}"
        );
    }

    #[test]
    fn quotes_and_backslashes_keep_words_together() {
        check("", &[]);
        check("  ls  -la\t/x\n", &["ls", "-la", "/x"]);
        check(r#"sh -c 'echo "a b"; ls'"#, &["sh", "-c", r#"echo "a b"; ls"#]);
        check(r#"a"b c"'d e'f ''"#, &["ab cd ef", ""]);
        check(r#"a\ b \'c "d\"e\n$x""#, &["a b", "'c", r#"d"e\n$x"#]);
        check("$HOME; ls", &["$HOME;", "ls"]);
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(split(bad).expect_err(bad).code, 422, "{bad}");
        }
    }

    #[test]
    fn a_list_wins_over_a_text_and_one_is_needed() {
        let both = ExecInput {
            cmd: "a b".to_owned(),
            command: vec!["c d".to_owned()],
            ..ExecInput::default()
        };
        assert_eq!(both.argv(), Ok(vec!["c d".to_owned()]));
        assert_eq!(ExecInput::default().argv().expect_err("none").code, 422);
        let empty = ExecInput { cmd: "''".to_owned(), ..ExecInput::default() };
        assert_eq!(empty.argv().expect_err("none").code, 422);
    }
}
