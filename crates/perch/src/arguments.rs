//! The command line that `perch backup` and `perch restore` share: a file and options in any order, a value behind `=` or
//! as the next argument.

use std::ffi::OsString;
use std::path::PathBuf;
use std::slice::Iter;

/// What both take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) file: PathBuf,
    pub(crate) data_dir: Option<PathBuf>,
    /// Over what is there.
    pub(crate) force: bool,
}

/// What comes with an option.
pub(crate) struct Value<'r, 'a> {
    /// Behind its `=`.
    given: Option<&'a str>,
    rest: &'r mut Iter<'a, OsString>,
}

impl Value<'_, '_> {
    /// True, for an option that takes no value.
    pub(crate) fn none(self) -> Option<bool> {
        self.given.is_none().then_some(true)
    }

    pub(crate) fn path(self) -> Option<PathBuf> {
        match self.given {
            Some(value) => Some(value.into()),
            None => self.rest.next().map(PathBuf::from),
        }
    }
}

impl Arguments {
    /// `other` takes the options that only one of them has. None when there are more or fewer files than one, or `other`
    /// takes offence.
    pub(crate) fn parse(
        args: &[OsString],
        mut other: impl FnMut(&str, Value<'_, '_>) -> Option<()>,
    ) -> Option<Self> {
        let mut parsed = Self::default();
        let mut file = None;
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if !arg.as_encoded_bytes().starts_with(b"-") {
                if file.replace(arg).is_some() {
                    return None;
                }
                continue;
            }
            let text = arg.to_str()?;
            let (name, given) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            let value = Value { given, rest: &mut rest };
            match name {
                "--data-dir" => parsed.data_dir = Some(value.path()?),
                "--force" => parsed.force = value.none()?,
                _ => other(name, value)?,
            }
        }
        let file = file.filter(|file| !file.is_empty())?.into();
        Some(Self { file, ..parsed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn parse(args: &[OsString]) -> Option<Arguments> {
        Arguments::parse(args, |_, _| None)
    }

    fn of(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn values_come_in_both_forms_and_the_file_at_any_place() {
        let wanted =
            |dir: &str| Arguments { file: "f".into(), data_dir: Some(dir.into()), force: true };
        assert_eq!(parse(&of(&["--data-dir", "d", "f", "--force"])), Some(wanted("d")));
        assert_eq!(parse(&of(&["f", "--force", "--data-dir=a=b"])), Some(wanted("a=b")));
        assert_eq!(parse(&of(&["--force", "f", "--data-dir", "--force"])), Some(wanted("--force")));
    }

    #[test]
    fn what_is_no_command_line_is_refused() {
        for words in [
            &[][..],
            &[""],
            &["f", "g"],
            &["--force"],
            &["f", "--data-dir"],
            &["f", "--force=no"],
            &["f", "--stranger"],
            &["f", "-"],
        ] {
            assert_eq!(parse(&of(words)), None, "{words:?}");
        }
    }

    #[test]
    fn paths_need_not_be_text_but_options_do() {
        let odd = || OsString::from_vec(b"\xff".to_vec());
        let read = parse(&[odd(), "--data-dir".into(), odd()]);
        let wanted = Arguments { file: odd().into(), data_dir: Some(odd().into()), force: false };
        assert_eq!(read, Some(wanted));
        assert_eq!(parse(&["f".into(), OsString::from_vec(b"--data-dir=\xff".to_vec())]), None);
    }
}
