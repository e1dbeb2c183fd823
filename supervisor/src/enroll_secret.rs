//! The first enroll secret: a random text in the state directory, made once. Control puts it into a store that holds
//! none; from then on the store decides.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleet_protocol::secret::Secret;

use crate::exit::Failure;
use crate::state_dir::write_private;

/// 24 random bytes are 32 characters of base64.
const RANDOM_BYTES: usize = 24;

/// `STATE/enroll_secret`
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("enroll_secret")
}

/// Reads the secret, or makes it when there is none.
pub(crate) fn load(state_dir: &Path) -> Result<Secret, Failure> {
    let path = path(state_dir);
    let trouble = |error: std::io::Error| {
        Failure::fatal(format!(
            "cannot use the enroll secret {}: {error}",
            path.display()
        ))
    };
    if !path.try_exists().map_err(trouble)? {
        let mut random = [0; RANDOM_BYTES];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| Failure::fatal("the system gives no random numbers"))?;
        let text = URL_SAFE_NO_PAD.encode(random) + "\n";
        write_private(&path, text.as_bytes()).map_err(trouble)?;
    }
    let text = fs::read_to_string(&path).map_err(trouble)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Failure::config(format!(
            "{} is empty; put a secret into it, or delete it to get a new one",
            path.display()
        )));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let made = load(dir.path()).unwrap();
        assert_eq!(made.reveal().len(), 32);
        assert_eq!(load(dir.path()).unwrap(), made);
        fs::write(path(dir.path()), " own secret \n").unwrap();
        assert_eq!(load(dir.path()).unwrap().reveal(), "own secret");
        fs::write(path(dir.path()), "\n").unwrap();
        assert!(load(dir.path()).is_err());
    }
}
