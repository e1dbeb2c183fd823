//! Users: names, addresses and roles become accounts without a password, which an admin gives them.

use fleet_protocol::secret::Secret;

use super::{ImportTally, Job, Person, Trouble};
use crate::model::user::{NewUser, Role, UserRefusal};
use crate::store;

/// Of a name; whoever has a longer one, or none, is called by the address.
const NAME_CHARS_MAX: usize = 255;

/// Who gets an account: nobody that could not sign in there, and no program, whose token is not copied.
fn account(person: &Person) -> Option<NewUser> {
    let role = match person.role.as_str() {
        // Fleet's next role above: the same, and live queries of one's own.
        "observer_plus" => Role::Observer,
        role => Role::named(role)?,
    };
    let name = person.name.trim();
    let has_name = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let email = person.email.trim();
    let is_one = !person.is_disabled && !person.is_api_only && person.email.contains('@');
    is_one.then(|| NewUser {
        name: if has_name { name } else { email }.to_owned(),
        email: email.to_owned(),
        password_hash: Secret::default(),
        role,
        is_api_only: false,
        must_reset: true,
    })
}

/// The beginning of an address, which may be of any length.
fn shown(email: &str) -> String {
    email.chars().take(100).collect()
}

impl Job<'_> {
    /// An account that is here stays as it is, whatever the options say: it may be the one of whoever copies.
    pub(super) async fn copy_people(&mut self) -> Result<(), Trouble> {
        let people = self.source.users().await?;
        let mut tally = ImportTally::of("users", people.len());
        for person in people {
            let Some(new) = account(&person) else {
                tally.left_out += 1;
                self.report.people.push(person);
                continue;
            };
            let outcome = if self.store.user_by_email(&new.email).await?.is_some() {
                Err(UserRefusal::EmailTaken)
            } else if self.options.is_dry_run {
                Ok(())
            } else {
                match self.store.add_user(&new, false).await {
                    Ok(outcome) => outcome.map(|_| ()),
                    Err(store::Error::Invalid(reason)) => {
                        let text = format!("user {:?}: {reason}; left out", shown(&new.email));
                        self.report.note(text);
                        tally.left_out += 1;
                        self.report.people.push(person);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            match outcome {
                Ok(()) => tally.added += 1,
                Err(UserRefusal::EmailTaken) => tally.same += 1,
                Err(_) => {
                    tally.left_out += 1;
                    self.report.people.push(person);
                }
            }
        }
        self.report.tallies.push(tally);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_with_a_role_here_get_an_account_without_a_password() {
        let person = Person {
            name: "Ann".into(),
            email: " ann@example.com ".into(),
            role: "observer_plus".into(),
            ..Person::default()
        };
        let new = account(&person).unwrap();
        assert_eq!(
            (new.email.as_str(), new.role),
            ("ann@example.com", Role::Observer)
        );
        assert!(new.password_hash.is_empty() && new.must_reset);
        let named = |name: &str| {
            let name = name.to_owned();
            let person = Person {
                name,
                ..person.clone()
            };
            account(&person).unwrap().name
        };
        assert_eq!(named(" Bob "), "Bob");
        assert_eq!(named(" "), "ann@example.com");
        assert_eq!(named(&"x".repeat(256)), "ann@example.com");
        let without = |change: fn(&mut Person)| {
            let mut person = person.clone();
            change(&mut person);
            account(&person).is_none()
        };
        assert!(without(|person| person.role = String::new()));
        assert!(without(|person| person.role = "gitops".into()));
        assert!(without(|person| person.is_disabled = true));
        assert!(without(|person| person.is_api_only = true));
        assert!(without(|person| person.email = String::new()));
    }
}
