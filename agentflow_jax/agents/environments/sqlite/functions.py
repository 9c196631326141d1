"""Functions that SQL of worlds may use: their result depends on the arguments only."""

# Only functions that SQLite has had since 3.38, so that a check does not pass on one
# machine and fail on another.
ALLOWED = frozenset(
  # Numbers and texts.
  'abs char coalesce format glob hex ifnull iif instr length like likelihood likely'
  ' lower ltrim max min nullif printf quote replace round rtrim sign soundex substr'
  ' substring trim typeof unicode unlikely upper zeroblob acos acosh asin asinh atan'
  ' atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow'
  ' power radians sin sinh sqrt tan tanh trunc'
  # Aggregates and windows.
  ' avg count group_concat sum total row_number rank dense_rank percent_rank'
  ' cume_dist ntile lag lead first_value last_value nth_value'
  # JSON.
  ' json json_array json_array_length json_extract json_insert json_object json_patch'
  ' json_quote json_remove json_replace json_set json_type json_valid'
  ' json_group_array json_group_object json_each json_tree -> ->>'
  # Rows that the statement before wrote.
  ' changes last_insert_rowid total_changes'.split()
)
