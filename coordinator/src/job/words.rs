//! Command lines as text: splitting them as a shell does, quoting them for one.
//!
//! Knows quotes and backslashes, and nothing else of a shell: no variables, no patterns, no pipes.
//! Pure.

/// Why text is no command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WordsError {
    /// A quote is never closed, or a backslash is the last character.
    #[error("`{0}` ends inside a quotation")]
    Open(String),
    /// There is nothing in it.
    #[error("an empty command")]
    Empty,
}

/// The words of a command line, at least one.
pub fn split(text: &str) -> Result<Vec<String>, WordsError> {
    let open = || WordsError::Open(text.to_owned());
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or_else(open)? {
                        '\'' => break,
                        inside => word.push(inside),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or_else(open)? {
                        '"' => break,
                        '\\' => match characters.next().ok_or_else(open)? {
                            escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                            other => word.extend(['\\', other]),
                        },
                        inside => word.push(inside),
                    }
                }
            }
            '\\' => {
                let escaped = characters.next().ok_or_else(open)?;
                word.get_or_insert_default().push(escaped);
            }
            plain => word.get_or_insert_default().push(plain),
        }
    }
    words.extend(word);
    if words.is_empty() {
        Err(WordsError::Empty)
    } else {
        Ok(words)
    }
}

/// A word as a shell reads it back.
pub fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Words as one line for a shell.
pub fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(quote).collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let words = split(r#"mpirun -n 4  lmp -in 'a b' "c \"d\" $e" f\ g '' "#).expect("closed");
        assert_eq!(
            words,
            [
                "mpirun",
                "-n",
                "4",
                "lmp",
                "-in",
                "a b",
                "c \"d\" $e",
                "f g",
                ""
            ]
        );
        assert_eq!(split("  "), Err(WordsError::Empty));
        assert!(matches!(split("a 'b"), Err(WordsError::Open(_))));
        assert!(matches!(split("a \\"), Err(WordsError::Open(_))));
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(words in prop::collection::vec(any::<String>(), 1..5)) {
            let line = join(words.iter().map(String::as_str));
            prop_assert_eq!(split(&line), Ok(words));
        }
    }
}
