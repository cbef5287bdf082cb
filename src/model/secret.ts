/** Where a secret is kept: the files and the state hold this, never the secret. */
export type SecretRef = { readonly kind: "env"; readonly name: string } | { readonly kind: "file"; readonly path: string };

/** How what a repository holds is sealed and opened. */
export interface EncryptionRef {
  /** A passphrase, or an age identity. */
  readonly key?: SecretRef;
  /** age recipients (`age1…`) whose identities open the repository as well. */
  readonly recipients: readonly string[];
}
