/** Version 4: how far the attempt that runs has come, for those who look from outside. Null until its export has begun. */
export const progress = `
ALTER TABLE attempts ADD COLUMN read_bytes INTEGER;
ALTER TABLE attempts ADD COLUMN total_bytes INTEGER;
`;
