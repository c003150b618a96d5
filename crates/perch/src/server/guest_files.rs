//! `[[files]]`: what a Machine's config wants written into its root.
//!
//! What the config itself contains is in the specification of a run. What a secret contains is not: it goes with the
//! secrets to the shim, and from there into memory that only the Machine sees.

use perch_api::wire::{FileContent, decode_base64};
use perch_machine::{RootFile, Secrets};

use super::records::MachineRecord;

/// Files whose content the config has.
pub(super) fn plain(record: &MachineRecord) -> Vec<RootFile> {
    let view = record.config.view();
    let files = view.files.iter().filter_map(|file| match file.content()? {
        FileContent::Bytes(content) => {
            Some(RootFile { path: file.guest_path.clone(), content, mode: file.mode() })
        }
        FileContent::Secret(_) => None,
    });
    files.collect()
}

/// Files whose content a secret has.
///
/// # Errors
/// In words for whoever may start the Machine, when there is no such secret, or it is no base64.
pub(super) fn secret(record: &MachineRecord, secrets: &Secrets) -> Result<Vec<RootFile>, String> {
    let mut files = Vec::new();
    for file in &record.config.view().files {
        let Some(FileContent::Secret(name)) = file.content() else { continue };
        let path = &file.guest_path;
        let value = secrets.value(&name).ok_or_else(|| {
            format!("file {path} wants secret {name}, which is not set; set it with `fly secrets set`, in base64")
        })?;
        let content = decode_base64(value)
            .ok_or_else(|| format!("secret {name} is no base64, as file {path} wants it"))?;
        files.push(RootFile { path: path.clone(), content, mode: file.mode() });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    fn record(files: &str) -> MachineRecord {
        let config = format!(r#"{{"image": "i", "files": {files}}}"#);
        let config = serde_json::from_str(&config).expect("a config");
        MachineRecord { config, ..records::machine("m") }
    }

    #[test]
    fn contents_come_from_the_config_or_from_a_secret() {
        let record = record(
            r#"[{"guest_path": "/a", "raw_value": "aGk="},
                {"guest_path": "/b", "secret_name": "KEY", "mode": 384}]"#,
        );
        let plain = plain(&record);
        assert_eq!((plain.len(), plain[0].content.as_slice()), (1, b"hi".as_slice()));
        let with = |value: &str| Secrets::new(vec![("KEY".to_owned(), value.to_owned())]);
        let files = secret(&record, &with("aHVudGVyMg==\n")).expect("it decodes");
        assert_eq!((files.len(), files[0].mode), (1, 0o600));
        assert_eq!(files[0].content, b"hunter2");
        let error = secret(&record, &with("hunter2")).expect_err("no base64");
        assert!(error.contains("KEY") && !error.contains("hunter2"), "{error}");
        let error = secret(&record, &Secrets::default()).expect_err("no secret");
        assert!(error.contains("not set"), "{error}");
    }
}
