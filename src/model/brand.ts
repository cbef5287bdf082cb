declare const brand: unique symbol;

/** A `T` that only the parser of `B` can make, so that a checked value cannot be confused with a raw one. */
export type Branded<T, B extends string> = T & { readonly [brand]: B };

/** The end of an exhaustive switch: the compiler proves that it is never reached. */
export function unreachable(value: never): never {
  throw new Error(`unreachable: ${JSON.stringify(value)}`);
}
